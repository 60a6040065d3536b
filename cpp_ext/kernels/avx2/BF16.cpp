// BF16 on AVX2: shifted into the upper half of a float32.
#include "float.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kBytes = 2;
  static HK2_INLINE __m256 load(const uint8_t* w) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w))), 16));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, BF16, multiply<FloatRow<Format>>)
