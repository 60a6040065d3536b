// TQ1_0 on AVX-512 VNNI: w = d * q - d; digits in base 3.
#include "fields.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 2, kBlock = 256, kBlockBytes = sizeof(BlockTQ1_0);
  static constexpr float kMinFactor = 1;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockTQ1_0& block = *reinterpret_cast<const BlockTQ1_0*>(bytes);
    Unit w;
    constexpr __mmask64 kUpper = 0xffffffff00000000;
    // Five digits of 32 bytes, then, a quarter of a vector each, five of sixteen and four of four.
    const __m512i wide = times_three(twice_32(block.qs), kUpper);
    const __m512i wide_2 = times_three(times_three(wide));
    const __m512i sixteen = _mm512_broadcast_i32x4(load_16(block.qs + 32));
    const __m512i wide_4 = _mm512_mask_mov_epi8(times_three(times_three(wide_2)), kUpper, sixteen);
    w.codes[0] = first_digit(wide);
    w.codes[1] = first_digit(wide_2);
    constexpr __mmask64 kFourth = 0xffff000000000000;
    w.codes[2] = first_digit(times_three(wide_4, kFourth));
    // Digits 2, 3 and 4 of the sixteen bytes, and 0..3 of the last four.
    int32_t last;
    memcpy(&last, block.qh, 4);
    const __m512i rest = _mm512_mask_set1_epi32(sixteen, 0xf000, last);
    const __m512i powers = _mm512_setr_epi64(
        0x0009000900090009, 0x0009000900090009, 0x001b001b001b001b, 0x001b001b001b001b,
        0x0051005100510051, 0x0051005100510051, 0x0003000300010001, 0x001b001b00090009);
    w.codes[3] = first_digit(times(rest, powers));
    const __m256 d = broadcast_half(block.d);
    set_scales(w, d, d);
    return w;
  }

 private:
  // All mod 256: what is left of a fraction of 256 after its first digit.
  static HK2_INLINE __m512i times_three(__m512i bytes, __mmask64 which = ~__mmask64{0}) {
    return _mm512_mask_add_epi8(bytes, which, bytes, _mm512_add_epi8(bytes, bytes));
  }
  static HK2_INLINE __m512i times(__m512i bytes, __m512i words) {
    const __m512i even = _mm512_mullo_epi16(bytes, words);
    const __m512i odd = _mm512_mullo_epi16(_mm512_srli_epi16(bytes, 8), words);
    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, even, _mm512_slli_epi16(odd, 8));
  }
  // 3 * fraction / 256
  static HK2_INLINE __m512i first_digit(__m512i fractions) {
    const __mmask64 one = _mm512_cmpge_epu8_mask(fractions, _mm512_set1_epi8(86));
    const __mmask64 two =
        _mm512_cmpge_epu8_mask(fractions, _mm512_set1_epi8(static_cast<char>(171)));
    return _mm512_mask_mov_epi8(_mm512_maskz_set1_epi8(one, 1), two, _mm512_set1_epi8(2));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(TQ1_0, Format, Tiled<Format>::multiply)
