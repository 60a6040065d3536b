// IQ1_S on AVX-512 VNNI: ternary runs of 8 times eight, groups of 32; codes are 9 more than grid
// and shift, and 2 too small where the shift is positive. kMaxCode is that of an eighth of the
// codes.
#include "../grids/IQ1_S.h"

#include "laned.h"

namespace hk2 {
namespace {

struct Format {
  using Order = ByRun8;
  static constexpr int kGroup = 32, kMaxCode = 2, kOffset = 9, kShift = 2;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ1_S);
  static constexpr bool kInPairs = false;
  static constexpr float kFactor = 0.125f;

  static HK2_INLINE LanedUnit load_lanes(const uint8_t* bytes) { return load<Order>(bytes); }
  static HK2_INLINE LanedUnit load_natural(const uint8_t* bytes) { return load<Sequential>(bytes); }

 private:
  template <class Runs>
  static HK2_INLINE LanedUnit load(const uint8_t* bytes) {
    const BlockIQ1_S& block = *reinterpret_cast<const BlockIQ1_S*>(bytes);
    LanedUnit w;
    // A word of qh has the high bits of four indices: moved to bits 8..10 of four words.
    const __m512i words = _mm512_cvtepu16_epi64(load_16(block.qh));
    const __m512i high = _mm512_slli_epi16(
        _mm512_srlv_epi16(four_times(words), _mm512_set1_epi64(0x0009000600030000)), 8);
    const __m512i low =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.qs)));
    const __m512i indices =
        _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi16(0x700), 0xf8);  // a | (b & c)
    for (int j = 0; j < 4; ++j) w.codes[j] = runs_of_8<Runs>(kGridIQ1_S, indices, j);
    const __m512i twice = low_twice(words);
    w.plus = _mm512_testn_epi32_mask(twice, _mm512_set1_epi32(0x8000));
    w.scales[0] = odd_scales(twice, 12, 7, broadcast_scale(block.d));
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(IQ1_S, Natural<Format>, multiply_laned<Format, 8>)
