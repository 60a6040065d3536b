// IQ2_S on AVX-512 VNNI: runs of 8 with signs, groups of 16; codes are magnitudes of at most 43,
// plus 43.
#include "../grids/IQ2_S.h"

#include "laned.h"

namespace hk2 {
namespace {

struct Format {
  using Order = ByRun8;
  static constexpr int kGroup = 16, kMaxCode = 86, kOffset = 43, kShift = 0;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ2_S);
  static constexpr bool kInPairs = false;
  static constexpr float kFactor = 0.125f;

  static HK2_INLINE LanedUnit load_lanes(const uint8_t* bytes) { return load<Order>(bytes); }
  static HK2_INLINE LanedUnit load_natural(const uint8_t* bytes) { return load<Sequential>(bytes); }

 private:
  template <class Runs>
  static HK2_INLINE LanedUnit load(const uint8_t* bytes) {
    const BlockIQ2_S& block = *reinterpret_cast<const BlockIQ2_S*>(bytes);
    LanedUnit w;
    const Signs signs(
        Runs::signs(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.signs))));
    // A byte of qh has the high bits of four indices: moved to bits 8 and 9 of four words.
    const __m512i high = _mm512_sllv_epi16(four_times(_mm512_cvtepu8_epi64(load_8(block.qh))),
                                           _mm512_set1_epi64(0x0002000400060008));
    const __m512i low =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.qs)));
    const __m512i indices =
        _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi16(0x300), 0xf8);  // a | (b & c)
    for (int j = 0; j < 4; ++j)
      w.codes[j] = signs.apply(j, runs_of_8<Runs>(kGridIQ2_S, indices, j), _mm512_set1_epi8(43));
    set_scales_of_bytes<Order>(w, block.scales, block.d);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(IQ2_S, Natural<Format>, multiply_laned<Format, 8>)
