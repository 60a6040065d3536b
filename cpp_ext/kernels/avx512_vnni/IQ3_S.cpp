// IQ3_S on AVX-512 VNNI: runs of 4 with signs, groups of 32; codes are magnitudes of at most 15,
// plus 15.
#include "../grids/IQ3_S.h"

#include "laned.h"

namespace hk2 {
namespace {

struct Format {
  using Order = ByRun8;
  static constexpr int kGroup = 32, kMaxCode = 30, kOffset = 15, kShift = 0;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ3_S);
  static constexpr bool kInPairs = false;
  static constexpr float kFactor = 1;

  static HK2_INLINE LanedUnit load_lanes(const uint8_t* bytes) { return load<Order>(bytes); }
  static HK2_INLINE LanedUnit load_natural(const uint8_t* bytes) { return load<Sequential>(bytes); }

 private:
  template <class Runs>
  static HK2_INLINE LanedUnit load(const uint8_t* bytes) {
    const BlockIQ3_S& block = *reinterpret_cast<const BlockIQ3_S*>(bytes);
    LanedUnit w;
    const Signs signs(
        Runs::signs(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.signs))));
    const __m512i low = _mm512_loadu_si512(block.qs);
    uint64_t bits;
    memcpy(&bits, block.qh, 8);
    const __m512i ninths = _mm512_maskz_set1_epi8(_cvtu64_mask64(bits), 1);
    for (int j = 0; j < 4; ++j) {
      const __m512i high = _mm512_slli_epi32(Runs::byte_indices(ninths, j), 8);
      const __m512i indices = _mm512_or_si512(Runs::byte_indices(low, j), high);
      w.codes[j] = signs.apply(j, runs_of_4(kGridIQ3_S, indices), _mm512_set1_epi8(15));
    }
    set_scales_of_nibbles(w, block);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(IQ3_S, Natural<Format>, multiply_laned<Format, 8>)
