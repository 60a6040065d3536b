// IQ3_XXS on AVX-512 VNNI: runs of 4 with signs, groups of 32; codes are magnitudes of at most 62,
// plus 62.
#include "../grids/IQ3_XXS.h"

#include "runs.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 124, kBlock = 256,
                       kBlockBytes = sizeof(BlockIQ3_XXS);
  static constexpr float kMinFactor = 62;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockIQ3_XXS& block = *reinterpret_cast<const BlockIQ3_XXS*>(bytes);
    Unit w;
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.signs));
    const Signs signs(even_signs_of_words(words));
    for (int j = 0; j < 4; ++j) {
      const __m512i indices = _mm512_cvtepu8_epi32(load_16(block.qs + 16 * j));
      w.codes[j] = signs.apply(j, runs_of_4(kGridIQ3_XXS, indices), _mm512_set1_epi8(62));
    }
    const __m256 scales = scales_of_top_bits(words, block.d, 0.5f);
    set_scales(w, scales, scales);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, IQ3_XXS, TiledKernel<Format>::multiply, decode<Format>)
