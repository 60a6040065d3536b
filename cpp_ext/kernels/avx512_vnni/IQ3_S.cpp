// IQ3_S on AVX-512 VNNI: runs of 4 with signs, groups of 32; codes are magnitudes of at most 15,
// plus 15.
#include "../grids/IQ3_S.h"

#include "runs.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 30, kBlock = 256, kBlockBytes = sizeof(BlockIQ3_S);
  static constexpr float kMinFactor = 15;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockIQ3_S& block = *reinterpret_cast<const BlockIQ3_S*>(bytes);
    Unit w;
    const Signs signs(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.signs)));
    for (int j = 0; j < 4; ++j) {
      // Two bytes hold the ninth bits of 16 indices.
      const __mmask16 ninth = static_cast<__mmask16>(block.qh[2 * j] | block.qh[2 * j + 1] << 8);
      const __m512i low = _mm512_cvtepu8_epi32(load_16(block.qs + 16 * j));
      const __m512i indices = _mm512_mask_add_epi32(low, ninth, low, _mm512_set1_epi32(256));
      w.codes[j] = signs.apply(j, runs_of_4(kGridIQ3_S, indices), _mm512_set1_epi8(15));
    }
    const __m256 scales = scales_of(block);
    set_scales(w, scales, scales);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, IQ3_S, TiledKernel<Format>::multiply, decode<Format>)
