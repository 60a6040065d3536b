// IQ3_S on AVX2: runs of 4 with signs, groups of 32; a ninth bit of each index lies apart.
#include "../grids/IQ3_S.h"

#include "runs.h"
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 256, kBlockBytes = sizeof(BlockIQ3_S);
  static constexpr bool kSigned = true;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockIQ3_S& block = *reinterpret_cast<const BlockIQ3_S*>(bytes);
    const Signs signs(load_32(block.signs));
    const __m256i ninth = _mm256_setr_epi32(8, 7, 6, 5, 4, 3, 2, 1);
    for (int g = 0; g < 8; ++g) {
      const __m256i low = _mm256_cvtepu8_epi32(load_8(block.qs + 8 * g));
      const __m256i high = _mm256_and_si256(
          _mm256_sllv_epi32(_mm256_set1_epi32(block.qh[g]), ninth), _mm256_set1_epi32(256));
      w.codes[g] = signs.apply(g, runs_of_4(kGridIQ3_S, _mm256_or_si256(low, high)));
    }
    w.scales[0] = scales_of(block);
    w.mins[0] = _mm256_setzero_ps();
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, IQ3_S, Tiled<Format>::multiply)
