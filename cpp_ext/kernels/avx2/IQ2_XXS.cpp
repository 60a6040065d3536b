// IQ2_XXS on AVX2: runs of 8 with signs, groups of 32.
#include "../grids/IQ2_XXS.h"

#include "runs.h"
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 256, kBlockBytes = sizeof(BlockIQ2_XXS);
  static constexpr bool kSigned = true;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockIQ2_XXS& block = *reinterpret_cast<const BlockIQ2_XXS*>(bytes);
    // Odd dwords hold signs and scale.
    const __m256i odd = _mm256_setr_epi32(1, 3, 5, 7, 1, 3, 5, 7);
    const __m256i words =
        _mm256_blend_epi32(_mm256_permutevar8x32_epi32(load_32(block.groups), odd),
                           _mm256_permutevar8x32_epi32(load_32(block.groups + 4), odd), 0xf0);
    const Signs signs(even_signs_of_words(words));
    for (int g = 0; g < 8; ++g) {
      const uint8_t* q = block.groups[g].qs;
      w.codes[g] = signs.apply(g, runs_of_8(kGridIQ2_XXS, q[0], q[1], q[2], q[3]));
    }
    w.scales[0] = scales_of_top_bits(words, block.d, 0.25f);
    w.mins[0] = _mm256_setzero_ps();
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, IQ2_XXS, Tiled<Format>::multiply)
