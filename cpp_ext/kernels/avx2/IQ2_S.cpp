// IQ2_S on AVX2: runs of 8 with signs, groups of 16; two high bits of each index lie apart.
#include "../grids/IQ2_S.h"

#include "runs.h"
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 16, kBlock = 256, kBlockBytes = sizeof(BlockIQ2_S);
  static constexpr bool kSigned = true;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockIQ2_S& block = *reinterpret_cast<const BlockIQ2_S*>(bytes);
    const Signs signs(load_32(block.signs));
    for (int g = 0; g < 8; ++g) {
      const uint8_t* q = block.qs + 4 * g;
      const int high = block.qh[g] << 2;
      w.codes[g] = signs.apply(
          g, runs_of_8(kGridIQ2_S, q[0] | (high << 6 & 0x300), q[1] | (high << 4 & 0x300),
                       q[2] | (high << 2 & 0x300), q[3] | (high & 0x300)));
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

HK2_EXPORT(avx2, IQ2_S, Tiled<Format>::multiply)
