// IQ1_M on AVX-512 VNNI: ternary runs of 8, groups of 16. Codes are 8 (grid + 1), plus 2 for a
// shift of 1/8 and 0 for -1/8: w = d * scale / 8 * (code - 9).
#include "../grids/IQ1_S.h"
#include "runs.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 16, kMaxCode = 18, kBlock = 256, kBlockBytes = sizeof(BlockIQ1_M);
  static constexpr float kMinFactor = 9;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockIQ1_M& block = *reinterpret_cast<const BlockIQ1_M*>(bytes);
    Unit w;
    const __m128i high = load_16(block.qh);  // nibbles: three bits of index and one of shift
    const __m256i nibbles =
        _mm256_set_m128i(nibbles_in_order(_mm_unpackhi_epi64(high, high)), nibbles_in_order(high));
    const __mmask32 plus = _knot_mask32(_mm256_movepi8_mask(_mm256_slli_epi16(nibbles, 4)));
    const __m512i low =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.qs)));
    const __m512i index_high = _mm512_slli_epi16(_mm512_cvtepu8_epi16(nibbles), 8);
    const Indices indices(
        _mm512_ternarylogic_epi32(low, index_high, _mm512_set1_epi16(0x700), 0xf8));  // a | (b & c)
    for (int j = 0; j < 4; ++j) {
      const __m512i runs = _mm512_slli_epi16(runs_of_8(kGridIQ1_S, indices[j]), 3);
      const __mmask8 mine = static_cast<__mmask8>(_cvtmask32_u32(plus) >> (8 * j));
      w.codes[j] = _mm512_mask_or_epi64(runs, mine, runs, _mm512_set1_epi8(2));
    }
    const __m256 factor = _mm256_mul_ps(broadcast_half(half_of(block)), _mm256_set1_ps(0.125f));
    const __m512 scales = scale_steps(odd_steps_of(block), factor);
    set_scales(w, scales, scales);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, IQ1_M, TiledKernel<Format>::multiply, decode<Format>)
