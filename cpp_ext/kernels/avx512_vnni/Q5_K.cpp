// Q5_K on AVX-512 VNNI: as Q4_K, and bit g of byte i of qh is the fifth bit of weight i of group g.
#include "fields.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 31, kBlock = 256, kBlockBytes = sizeof(BlockQ5_K);
  static constexpr float kMinFactor = 1;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockQ5_K& block = *reinterpret_cast<const BlockQ5_K*>(bytes);
    Unit w;
    const __m512i high = twice_32(block.qh);
    const __m512i fifth[4] = {
        _mm512_sllv_epi16(high, by_half(4, 3)), _mm512_sllv_epi16(high, by_half(2, 1)),
        _mm512_srlv_epi16(high, by_half(0, 1)), _mm512_srlv_epi16(high, by_half(2, 3))};
    for (int j = 0; j < 4; ++j)  // a | (b & 16)
      w.codes[j] = _mm512_ternarylogic_epi32(spread_nibbles(twice_32(block.qs + 32 * j)), fifth[j],
                                             _mm512_set1_epi8(16), 0xf8);
    const ScalesAndMins groups = scales_of_k4(block);
    set_scales(w, groups.scales, groups.mins);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(Q5_K, Format, Tiled<Format>::multiply)
