// IQ3_XXS on AVX2: runs of 4 with signs, groups of 32.
#include "../grids/IQ3_XXS.h"

#include "runs.h"
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 256, kBlockBytes = sizeof(BlockIQ3_XXS);
  static constexpr bool kSigned = true;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockIQ3_XXS& block = *reinterpret_cast<const BlockIQ3_XXS*>(bytes);
    const __m256i words = load_32(block.signs);
    const Signs signs(even_signs_of_words(words));
    for (int g = 0; g < 8; ++g) {
      const __m256i indices = _mm256_cvtepu8_epi32(load_8(block.qs + 8 * g));
      w.codes[g] = signs.apply(g, runs_of_4(kGridIQ3_XXS, indices));
    }
    w.scales[0] = scales_of_top_bits(words, block.d, 0.5f);
    w.mins[0] = _mm256_setzero_ps();
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, IQ3_XXS, Tiled<Format>::multiply)
