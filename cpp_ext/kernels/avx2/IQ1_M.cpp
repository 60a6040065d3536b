// IQ1_M on AVX2: ternary runs of 8 times eight, groups of 16. Codes are 8 (grid + 1), plus 2 for a
// shift of 1/8 and 0 for -1/8: w = d * scale / 8 * (code - 9).
#include "../grids/IQ1_S.h"
#include "runs.h"
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 16, kBlock = 256, kBlockBytes = sizeof(BlockIQ1_M);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockIQ1_M& block = *reinterpret_cast<const BlockIQ1_M*>(bytes);
    for (int g = 0; g < 8; ++g) {
      const uint8_t* q = block.qs + 4 * g;
      const int a = block.qh[2 * g], b = block.qh[2 * g + 1];  // nibbles: 3 bits of index, a shift
      const __m256i runs = runs_of_8(kGridIQ1_S, q[0] | (a << 8 & 0x700), q[1] | (a << 4 & 0x700),
                                     q[2] | (b << 8 & 0x700), q[3] | (b << 4 & 0x700));
      const __m256i nibbles = _mm256_setr_epi64x(a, a >> 4, b, b >> 4);
      // 2 in all bytes of a run whose bit 3 is clear.
      const __m256i minus = _mm256_cmpgt_epi64(_mm256_and_si256(nibbles, _mm256_set1_epi64x(8)),
                                               _mm256_setzero_si256());
      const __m256i shifts = _mm256_andnot_si256(minus, _mm256_set1_epi8(2));
      w.codes[g] = _mm256_or_si256(runs, shifts);
    }
    const __m128i steps = odd_steps_of(block);
    const __m256 d = _mm256_mul_ps(broadcast_half(half_of(block)), _mm256_set1_ps(0.125f));
    w.scales[0] = _mm256_mul_ps(to_floats(steps), d);
    w.scales[1] = _mm256_mul_ps(to_floats(_mm_unpackhi_epi64(steps, steps)), d);
    for (int i = 0; i < 2; ++i) w.mins[i] = _mm256_mul_ps(w.scales[i], _mm256_set1_ps(9));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, IQ1_M, Tiled<Format>::multiply)
