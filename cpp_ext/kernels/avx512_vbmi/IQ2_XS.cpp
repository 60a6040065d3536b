// IQ2_XS on AVX-512 VBMI: as on VNNI, with the grid in registers, for the indices of two blocks.
#include "../grids/IQ2_XS.h"

#include "planes.h"

namespace hk2 {
namespace {

constexpr Plane<512, 2> kLower(kGridIQ2_XS, 0, number_of_iq2),
    kUpper(kGridIQ2_XS, 4, number_of_iq2);

struct Format {
  using Order = ByQuarter;
  static constexpr int kGroup = 16, kMaxCode = 86, kOffset = 43, kShift = 0;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ2_XS);
  static constexpr bool kInPairs = true;
  static constexpr float kFactor = 0.125f;

  static HK2_INLINE LanedUnit load_natural(const uint8_t* bytes) {
    return to_natural<Format>(bytes);
  }
  static HK2_INLINE void load_lanes(const uint8_t* even, const uint8_t* odd, LanedUnit w[2]) {
    const BlockIQ2_XS& first = *reinterpret_cast<const BlockIQ2_XS*>(even);
    const BlockIQ2_XS& second = *reinterpret_cast<const BlockIQ2_XS*>(odd);
    constexpr __mmask64 kOdd = 0xaaaaaaaaaaaaaaaa;
    // Words: 9 bits of index, 7 of signs. The first block's in even bytes, the second's in odd.
    const __m512i words[2] = {_mm512_loadu_si512(first.qs), _mm512_loadu_si512(second.qs)};
    const __m512i indices = _mm512_mask_blend_epi8(kOdd, words[0], _mm512_slli_epi16(words[1], 8));
    const __m512i ninths = _mm512_mask_blend_epi8(kOdd, _mm512_srli_epi16(words[0], 8), words[1]);
    const Parts<512> parts(indices, _mm512_test_epi8_mask(ninths, _mm512_set1_epi8(1)));
    const __m512i lower = kLower.look_up(indices, parts), upper = kUpper.look_up(indices, parts);
    const __m512i numbers[2] = {_mm512_mask_blend_epi8(kOdd, lower, _mm512_slli_epi16(upper, 8)),
                                _mm512_mask_blend_epi8(kOdd, _mm512_srli_epi16(lower, 8), upper)};
    for (int i = 0; i < 2; ++i) {
      const auto signs = NibbleSigns<2>::even(words[i], 0x3939292919190909,
                                              static_cast<long long>(0xff00ff00ff00ff00));
      set_codes(w[i], numbers[i], signs, values_of_iq2());
    }
    set_scales_of_bytes<Order>(w[0], first.scales, first.d);
    set_scales_of_bytes<Order>(w[1], second.scales, second.d);
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vbmi, IQ2_XS, multiply_laned<Format, 12>, nullptr)
