// F32 on AVX-512: loaded as it is.
#include "float.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kBytes = 4;
  static HK2_INLINE __m512 load(const uint8_t* w, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, w);
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, F32, multiply<FloatRow<Format>>)
