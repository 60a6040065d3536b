// IQ1_M on AVX-512 VNNI: ternary runs of 8 times eight, groups of 16; codes are 9 more than grid
// and shift, which each run has its own of.
#include "../grids/IQ1_S.h"
#include "laned.h"

namespace hk2 {
namespace {

struct Format {
  using Order = ByRun8;
  static constexpr int kGroup = 16, kMaxCode = 18, kOffset = 9, kShift = 0;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ1_M);
  static constexpr bool kInPairs = false;
  static constexpr float kFactor = 0.125f;

  static HK2_INLINE LanedUnit load_lanes(const uint8_t* bytes) { return load<Order>(bytes); }
  static HK2_INLINE LanedUnit load_natural(const uint8_t* bytes) { return load<Sequential>(bytes); }

 private:
  template <class Runs>
  static HK2_INLINE LanedUnit load(const uint8_t* bytes) {
    const BlockIQ1_M& block = *reinterpret_cast<const BlockIQ1_M*>(bytes);
    LanedUnit w;
    const __m128i high = load_16(block.qh);  // nibbles: three bits of index and one of shift
    const __m256i nibbles =
        _mm256_set_m128i(nibbles_in_order(_mm_unpackhi_epi64(high, high)), nibbles_in_order(high));
    const __m512i low =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.qs)));
    const __m512i words = _mm512_or_si512(low, _mm512_slli_epi16(_mm512_cvtepu8_epi16(nibbles), 8));
    for (int j = 0; j < 4; ++j) {
      const __m512i indices = Runs::indices(words, j);
      const __m512i runs =
          _mm512_i64gather_epi64(_mm512_and_si512(indices, _mm512_set1_epi64(2047)), kGridIQ1_S, 8);
      const __mmask8 plus = _mm512_testn_epi64_mask(indices, _mm512_set1_epi64(2048));
      w.codes[j] = _mm512_mask_or_epi64(runs, plus, runs, _mm512_set1_epi8(2));
    }
    // The steps of groups 2 g and 2 g + 1.
    const __m256i steps = _mm256_cvtepi8_epi16(odd_steps_of(block));
    const __m512i pairs = low_twice(_mm512_cvtepu32_epi64(steps));
    const __m512 d = broadcast_scale(half_of(block));
    w.scales[0] =
        _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(15))), d);
    w.scales[1] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(pairs, 16)), d);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(IQ1_M, Natural<Format>, multiply_laned<Format, 8>)
