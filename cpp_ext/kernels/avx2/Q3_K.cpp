// Q3_K on AVX2: w = d * scale * q - 4 d * scale per group of 16; weight 32 s + i has its third bit
// in bit s of byte i of hmask.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 16, kBlock = 256, kBlockBytes = sizeof(BlockQ3_K);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockQ3_K& block = *reinterpret_cast<const BlockQ3_K*>(bytes);
    const __m256i mask = load_32(block.hmask);
    for (int half = 0; half < 2; ++half) {
      const __m256i bits = load_32(block.qs + 32 * half);
      // Move the third bits of this half to bit 2.
      const __m256i third = half ? _mm256_srli_epi16(mask, 4) : mask;
      __m256i* codes = w.codes + 4 * half;
      codes[0] = join(bits, _mm256_slli_epi16(third, 2));
      codes[1] = join(_mm256_srli_epi16(bits, 2), _mm256_slli_epi16(third, 1));
      codes[2] = join(_mm256_srli_epi16(bits, 4), third);
      codes[3] = join(_mm256_srli_epi16(bits, 6), _mm256_srli_epi16(third, 1));
    }
    const __m128i steps = steps_of(block);
    const __m256 d = broadcast_half(block.d);
    w.scales[0] = _mm256_mul_ps(to_floats(steps), d);
    w.scales[1] = _mm256_mul_ps(to_floats(_mm_unpackhi_epi64(steps, steps)), d);
    for (int i = 0; i < 2; ++i) w.mins[i] = _mm256_mul_ps(w.scales[i], _mm256_set1_ps(4));
  }

 private:
  static HK2_INLINE __m256i join(__m256i two, __m256i third) {
    return _mm256_or_si256(_mm256_and_si256(two, _mm256_set1_epi8(3)),
                           _mm256_and_si256(third, _mm256_set1_epi8(4)));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, Q3_K, Tiled<Format>::multiply)
