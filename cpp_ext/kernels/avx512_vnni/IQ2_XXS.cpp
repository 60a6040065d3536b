// IQ2_XXS on AVX-512 VNNI: runs of 8 with signs, groups of 32; codes are magnitudes of at most 43,
// plus 43.
#include "../grids/IQ2_XXS.h"

#include "runs.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 86, kBlock = 256, kBlockBytes = sizeof(BlockIQ2_XXS);
  static constexpr float kMinFactor = 43;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockIQ2_XXS& block = *reinterpret_cast<const BlockIQ2_XXS*>(bytes);
    Unit w;
    const __m512i pairs = _mm512_loadu_si512(block.groups);  // four indices, then signs and scale
    const __m256i words = _mm512_cvtepi64_epi32(_mm512_srli_epi64(pairs, 32));
    const __m256i indices = _mm512_cvtepi64_epi32(pairs);
    const Signs signs(even_signs_of_words(words));
    const __m128i lower = _mm256_castsi256_si128(indices);
    const __m128i upper = _mm256_extracti128_si256(indices, 1);
    const __m128i eights[4] = {lower, _mm_unpackhi_epi64(lower, lower), upper,
                               _mm_unpackhi_epi64(upper, upper)};
    for (int j = 0; j < 4; ++j)
      w.codes[j] = signs.apply(j, runs_of_8(kGridIQ2_XXS, _mm256_cvtepu8_epi32(eights[j])),
                               _mm512_set1_epi8(43));
    const __m256 scales = scales_of_top_bits(words, block.d, 0.25f);
    set_scales(w, scales, scales);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, IQ2_XXS, TiledKernel<Format>::multiply, decode<Format>)
