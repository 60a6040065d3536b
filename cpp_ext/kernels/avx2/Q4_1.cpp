// Q4_1 on AVX2: w = d * q + m.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 32, kBlockBytes = sizeof(BlockQ4_1);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockQ4_1* block = reinterpret_cast<const BlockQ4_1*>(bytes);
    for (int b = 0; b < 8; ++b) {
      const __m128i nibbles = load_16(block[b].qs);
      w.codes[b] = low_nibbles(_mm256_set_m128i(_mm_srli_epi16(nibbles, 4), nibbles));
    }
    const Halves halves = block_halves(block);
    w.scales[0] = halves.first;
    w.mins[0] = _mm256_sub_ps(_mm256_setzero_ps(), halves.second);
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, Q4_1, Tiled<Format>::multiply)
