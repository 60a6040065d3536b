// Q4_0 on AVX2: w = d * q - 8 d.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 32, kBlockBytes = sizeof(BlockQ4_0);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockQ4_0* block = reinterpret_cast<const BlockQ4_0*>(bytes);
    for (int b = 0; b < 8; ++b) {
      const __m128i nibbles = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block[b].qs));
      w.codes[b] = low_nibbles(_mm256_set_m128i(_mm_srli_epi16(nibbles, 4), nibbles));
    }
    w.scales[0] = block_scales(block);
    w.mins[0] = _mm256_mul_ps(w.scales[0], _mm256_set1_ps(8));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, Q4_0, Tiled<Format>::multiply)
