// BF16 on AVX-512: shifted into the upper half of a float32.
#include "float.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kBytes = 2;
  static HK2_INLINE __m512 load(const uint8_t* w, __mmask16 mask) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, w)), 16));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, BF16, multiply<FloatRow<Format>>)
