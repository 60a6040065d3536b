// Q8_0 on AVX-512 VNNI: codes + 128 are unsigned; w = d * (q + 128) - 128 d.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 255, kBlock = 32, kBlockBytes = sizeof(BlockQ8_0);
  static constexpr float kMinFactor = 128;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockQ8_0* block = reinterpret_cast<const BlockQ8_0*>(bytes);
    const __m512i sign = _mm512_set1_epi8(-128);
    Unit w;
    for (int j = 0; j < 4; ++j) {
      const __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block[2 * j].qs));
      const __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block[2 * j + 1].qs));
      w.codes[j] = _mm512_xor_si512(_mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1), sign);
    }
    const __m128i halves =
        _mm_setr_epi16(static_cast<short>(block[0].d), static_cast<short>(block[1].d),
                       static_cast<short>(block[2].d), static_cast<short>(block[3].d),
                       static_cast<short>(block[4].d), static_cast<short>(block[5].d),
                       static_cast<short>(block[6].d), static_cast<short>(block[7].d));
    const __m256 d = _mm256_cvtph_ps(halves);
    w.scales = _mm512_permutexvar_ps(block_of_lane(), _mm512_castps256_ps512(d));
    w.mins = _mm512_castps256_ps512(d);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(Q8_0, Format, Tiled<Format>::multiply)
