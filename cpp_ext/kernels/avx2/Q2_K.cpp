// Q2_K on AVX2: w = d * scale * q - dmin * min per group of 16.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 16, kBlock = 256, kBlockBytes = sizeof(BlockQ2_K);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockQ2_K& block = *reinterpret_cast<const BlockQ2_K*>(bytes);
    for (int half = 0; half < 2; ++half) {
      __m256i bits = load_32(block.qs + 32 * half);
      for (int j = 0; j < 4; ++j, bits = _mm256_srli_epi16(bits, 2))
        w.codes[4 * half + j] = _mm256_and_si256(bits, _mm256_set1_epi8(3));
    }

    const __m128i both = load_16(block.scales);
    const __m128i low = _mm_and_si128(both, _mm_set1_epi8(15));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(both, 4), _mm_set1_epi8(15));
    const __m256 d = broadcast_half(block.d), dmin = broadcast_half(block.dmin);
    w.scales[0] = _mm256_mul_ps(to_floats(low), d);
    w.scales[1] = _mm256_mul_ps(to_floats(_mm_unpackhi_epi64(low, low)), d);
    w.mins[0] = _mm256_mul_ps(to_floats(high), dmin);
    w.mins[1] = _mm256_mul_ps(to_floats(_mm_unpackhi_epi64(high, high)), dmin);
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, Q2_K, Tiled<Format>::multiply)
