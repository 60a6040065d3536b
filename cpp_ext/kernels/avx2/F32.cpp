// F32 on AVX2: loaded as it is.
#include "float.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kBytes = 4;
  static HK2_INLINE __m256 load(const uint8_t* w) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(w));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, F32, multiply<FloatRow<Format>>)
