// F16 on AVX-512: widened by vcvtph2ps.
#include "float.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kBytes = 2;
  static HK2_INLINE __m512 load(const uint8_t* w, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, w));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, F16, multiply<FloatRow<Format>>)
