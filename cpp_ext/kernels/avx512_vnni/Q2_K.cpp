// Q2_K on AVX-512 VNNI: w = d * scale * q - dmin * min per group of 16.
#include "fields.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 16, kMaxCode = 3, kBlock = 256, kBlockBytes = sizeof(BlockQ2_K);
  static constexpr float kMinFactor = 1;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockQ2_K& block = *reinterpret_cast<const BlockQ2_K*>(bytes);
    Unit w;
    for (int j = 0; j < 4; ++j) w.codes[j] = two_bits(block.qs, j);
    const __m512i both = _mm512_cvtepu8_epi32(load_16(block.scales));
    const __m512i low = _mm512_and_si512(both, _mm512_set1_epi32(15));
    int32_t halves;
    memcpy(&halves, &block.d, 4);
    const __m128 d = _mm_cvtph_ps(_mm_cvtsi32_si128(halves));  // and dmin
    set_scales(w, _mm512_mul_ps(_mm512_cvtepi32_ps(low), _mm512_broadcastss_ps(d)),
               _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(both, 4)),
                             _mm512_broadcastss_ps(_mm_movehdup_ps(d))));
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(Q2_K, Format, Tiled<Format>::multiply)
