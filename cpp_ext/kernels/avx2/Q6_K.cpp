// Q6_K on AVX2: w = d * scale * q - 32 d * scale per group of 16.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 16, kBlock = 256, kBlockBytes = sizeof(BlockQ6_K);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockQ6_K& block = *reinterpret_cast<const BlockQ6_K*>(bytes);
    for (int half = 0; half < 2; ++half) {
      const __m256i first = load_32(block.ql + 64 * half),
                    second = load_32(block.ql + 64 * half + 32);
      const __m256i high = load_32(block.qh + 32 * half);
      __m256i* codes = w.codes + 4 * half;
      codes[0] = join(low_nibbles(first), _mm256_slli_epi16(high, 4));
      codes[1] = join(low_nibbles(second), _mm256_slli_epi16(high, 2));
      codes[2] = join(high_nibbles(first), high);
      codes[3] = join(high_nibbles(second), _mm256_srli_epi16(high, 2));
    }
    const __m256 d = _mm256_set1_ps(half_to_float(block.d));
    const __m128i steps = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block.scales));
    w.scales[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(steps)), d);
    w.scales[1] = _mm256_mul_ps(
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(steps, steps))), d);
    for (int i = 0; i < 2; ++i) w.mins[i] = _mm256_mul_ps(w.scales[i], _mm256_set1_ps(32));
  }

 private:
  // Bits 4..5 of `high` above the nibbles.
  static HK2_INLINE __m256i join(__m256i nibbles, __m256i high) {
    return _mm256_or_si256(nibbles, _mm256_and_si256(high, _mm256_set1_epi8(0x30)));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, Q6_K, Tiled<Format>::multiply)
