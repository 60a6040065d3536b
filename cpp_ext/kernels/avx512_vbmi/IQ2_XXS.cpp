// IQ2_XXS on AVX-512 VBMI: as on VNNI, with the grid in registers, for the indices of two blocks.
#include "../grids/IQ2_XXS.h"

#include "planes.h"

namespace hk2 {
namespace {

constexpr Plane<256, 2> kLower(kGridIQ2_XXS, 0, number_of_iq2),
    kUpper(kGridIQ2_XXS, 4, number_of_iq2);

struct Format {
  using Order = ByHalfRun;
  static constexpr int kGroup = 32, kMaxCode = 86, kOffset = 43, kShift = 0;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ2_XXS);
  static constexpr bool kInPairs = true;
  static constexpr float kFactor = 0.125f;

  static HK2_INLINE LanedUnit load_natural(const uint8_t* bytes) {
    return to_natural<Format>(bytes);
  }
  static HK2_INLINE void load_lanes(const uint8_t* even, const uint8_t* odd, LanedUnit w[2]) {
    const BlockIQ2_XXS& first = *reinterpret_cast<const BlockIQ2_XXS*>(even);
    const BlockIQ2_XXS& second = *reinterpret_cast<const BlockIQ2_XXS*>(odd);
    // Lanes: four indices, then signs and scale.
    const __m512i lanes[2] = {_mm512_loadu_si512(first.groups), _mm512_loadu_si512(second.groups)};
    const __m512i indices = _mm512_mask_shuffle_epi32(lanes[0], 0xaaaa, lanes[1], _MM_PERM_CCAA);
    const Parts<256> parts(indices);
    const __m512i lower = kLower.look_up(indices, parts), upper = kUpper.look_up(indices, parts);
    const __m512i numbers[2] = {
        _mm512_mask_blend_epi32(0xaaaa, lower, _mm512_slli_epi64(upper, 32)),
        _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(lower, 32), upper)};
    for (int i = 0; i < 2; ++i) {
      const auto signs = NibbleSigns<2>::even(lanes[i], 0x352e2720352e2720,
                                              static_cast<long long>(0xffffffff00000000));
      set_codes(w[i], numbers[i], signs, values_of_iq2());
      w[i].scales[0] =
          odd_scales(high_twice(lanes[i]), 28, 15, broadcast_scale(i ? second.d : first.d));
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vbmi, IQ2_XXS, multiply_laned<Format, 12>, nullptr)
