// Q5_0 on AVX2: w = d * q - 16 d; each block has a word of fifth bits.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 32, kBlockBytes = sizeof(BlockQ5_0);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockQ5_0* block = reinterpret_cast<const BlockQ5_0*>(bytes);
    for (int b = 0; b < 8; ++b) {
      const __m128i nibbles = load_16(block[b].qs);
      const __m256i low = low_nibbles(_mm256_set_m128i(_mm_srli_epi16(nibbles, 4), nibbles));
      int32_t high;
      memcpy(&high, block[b].qh, 4);
      w.codes[b] = _mm256_or_si256(low, _mm256_and_si256(where_set(high), _mm256_set1_epi8(16)));
    }

    w.scales[0] = block_scales(block);
    w.mins[0] = _mm256_mul_ps(w.scales[0], _mm256_set1_ps(16));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, Q5_0, Tiled<Format>::multiply)
