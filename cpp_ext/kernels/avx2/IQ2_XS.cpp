// IQ2_XS on AVX2: runs of 8 with signs, groups of 16.
#include "../grids/IQ2_XS.h"

#include "runs.h"
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 16, kBlock = 256, kBlockBytes = sizeof(BlockIQ2_XS);
  static constexpr bool kSigned = true;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockIQ2_XS& block = *reinterpret_cast<const BlockIQ2_XS*>(bytes);
    // Seven signs on top of each word.
    const __m256i lower = _mm256_srli_epi16(load_32(block.qs), 9);
    const __m256i upper = _mm256_srli_epi16(load_32(block.qs + 16), 9);
    const __m256i sevens = _mm256_permute4x64_epi64(_mm256_packus_epi16(lower, upper), 0xd8);
    const Signs signs(add_even_sign(sevens));
    for (int g = 0; g < 8; ++g) {
      const uint16_t* q = block.qs + 4 * g;
      w.codes[g] =
          signs.apply(g, runs_of_8(kGridIQ2_XS, q[0] & 511, q[1] & 511, q[2] & 511, q[3] & 511));
    }
    const __m128i steps = odd_steps_of(block);
    const __m256 d = _mm256_mul_ps(broadcast_half(block.d), _mm256_set1_ps(0.125f));
    w.scales[0] = _mm256_mul_ps(to_floats(steps), d);
    w.scales[1] = _mm256_mul_ps(to_floats(_mm_unpackhi_epi64(steps, steps)), d);
    w.mins[0] = w.mins[1] = _mm256_setzero_ps();
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, IQ2_XS, Tiled<Format>::multiply)
