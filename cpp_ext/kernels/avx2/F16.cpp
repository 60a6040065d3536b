// F16 on AVX2: widened by vcvtph2ps.
#include "float.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kBytes = 2;
  static HK2_INLINE __m256 load(const uint8_t* w) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, F16, multiply<FloatRow<Format>>)
