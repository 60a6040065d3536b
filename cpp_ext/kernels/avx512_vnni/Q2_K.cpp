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
    const __m128i both = load_16(block.scales);
    const __m128i low = _mm_and_si128(both, _mm_set1_epi8(15));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(both, 4), _mm_set1_epi8(15));
    set_scales(w, scale_steps(low, broadcast_half(block.d)),
               scale_steps(high, broadcast_half(block.dmin)));
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, Q2_K, TiledKernel<Format>::multiply, decode<Format>)
