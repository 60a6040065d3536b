// IQ2_XS on AVX-512 VNNI: runs of 8 with signs, groups of 16; codes are magnitudes of at most 43,
// plus 43.
#include "../grids/IQ2_XS.h"

#include "runs.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 16, kMaxCode = 86, kBlock = 256, kBlockBytes = sizeof(BlockIQ2_XS);
  static constexpr float kMinFactor = 43;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockIQ2_XS& block = *reinterpret_cast<const BlockIQ2_XS*>(bytes);
    Unit w;
    const __m512i words = _mm512_loadu_si512(block.qs);  // 9 bits of index, 7 of signs
    const Indices indices(_mm512_and_si512(words, _mm512_set1_epi16(511)));
    const Signs signs(add_even_sign(_mm512_cvtepi16_epi8(_mm512_srli_epi16(words, 9))));
    for (int j = 0; j < 4; ++j)
      w.codes[j] = signs.apply(j, runs_of_8(kGridIQ2_XS, indices[j]), _mm512_set1_epi8(43));
    const __m256 factor = _mm256_mul_ps(broadcast_half(block.d), _mm256_set1_ps(0.125f));
    const __m512 scales = scale_steps(odd_steps_of(block), factor);
    set_scales(w, scales, scales);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, IQ2_XS, TiledKernel<Format>::multiply, decode<Format>)
