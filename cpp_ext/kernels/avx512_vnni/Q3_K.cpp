// Q3_K on AVX-512 VNNI: w = d * scale * q - 4 d * scale per group of 16; bit s of byte i of hmask
// is the third bit of weight 32 s + i.
#include "fields.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 16, kMaxCode = 7, kBlock = 256, kBlockBytes = sizeof(BlockQ3_K);
  static constexpr float kMinFactor = 4;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockQ3_K& block = *reinterpret_cast<const BlockQ3_K*>(bytes);
    Unit w;
    const __m512i mask = twice_32(block.hmask);
    const __m512i third[4] = {
        _mm512_sllv_epi16(mask, by_half(2, 1)), _mm512_srlv_epi16(mask, by_half(0, 1)),
        _mm512_srlv_epi16(mask, by_half(2, 3)), _mm512_srlv_epi16(mask, by_half(4, 5))};
    for (int j = 0; j < 4; ++j)  // a | (b & 4)
      w.codes[j] =
          _mm512_ternarylogic_epi32(two_bits(block.qs, j), third[j], _mm512_set1_epi8(4), 0xf8);
    const __m512 scales = scale_steps(steps_of(block), broadcast_half(block.d));
    set_scales(w, scales, scales);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, Q3_K, TiledKernel<Format>::multiply, decode<Format>)
