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
    // The twelve bytes of scales are unpacked with scalar code: the vector ports are the
    // bottleneck. Low nibbles lie in eight bytes, two high bits each in four.
    uint64_t low;
    uint32_t high;
    memcpy(&low, block.scales, 8);
    memcpy(&high, block.scales + 8, 4);
    constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0f, kHigh = 0x3030303030303030;
    const uint64_t twice = high | static_cast<uint64_t>(high) << 30;  // bits 2.. from bit 32 on
    const uint64_t first = (low & kLow) | (twice << 4 & kHigh);
    const uint64_t second = (low >> 4 & kLow) | (twice & kHigh);
    const __m128i steps =
        _mm_set_epi64x(static_cast<long long>(second), static_cast<long long>(first));
    const __m512 scales = _mm512_mul_ps(
        _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(steps), _mm512_set1_epi32(32))),
        _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(block.d))));
    set_scales(w, scales, scales);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(Q3_K, Format, Tiled<Format>::multiply)
