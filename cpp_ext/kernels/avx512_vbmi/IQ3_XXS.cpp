// IQ3_XXS on AVX-512 VBMI: as on VNNI, with the grid in registers.
#include "../grids/IQ3_XXS.h"

#include "planes.h"

namespace hk2 {
namespace {

constexpr int number_of(int magnitude) { return magnitude >> 3; }  // 4, 12, ... 52, 62
constexpr Plane<256, 4> kFirst(kGridIQ3_XXS, 0, number_of), kSecond(kGridIQ3_XXS, 2, number_of);

struct Format {
  using Order = ByQuarter;
  static constexpr int kGroup = 32, kMaxCode = 124, kOffset = 62, kShift = 0;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ3_XXS);
  static constexpr bool kInPairs = false;
  static constexpr float kFactor = 0.25f;

  static HK2_INLINE LanedUnit load_natural(const uint8_t* bytes) {
    return to_natural<Format>(bytes);
  }
  static HK2_INLINE LanedUnit load_lanes(const uint8_t* bytes) {
    const BlockIQ3_XXS& block = *reinterpret_cast<const BlockIQ3_XXS*>(bytes);
    LanedUnit w;
    const __m512i indices = _mm512_loadu_si512(block.qs);
    const Parts<256> parts(indices);
    const __m512i words = twice_each(load_32(block.signs));
    const auto signs =
        NibbleSigns<4>::even(words, 0x15150e0e07070000, static_cast<long long>(0xff00ff00ff00ff00));
    set_codes(w, kFirst.look_up(indices, parts), kSecond.look_up(indices, parts), signs,
              _mm512_broadcast_i32x4(_mm_setr_epi8(66, 74, 82, 90, 98, 106, 114, 124,  //
                                                   58, 50, 42, 34, 26, 18, 10, 0)));
    w.scales[0] = odd_scales(words, 28, 15, broadcast_scale(block.d));
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vbmi, IQ3_XXS, multiply_laned<Format, 12>, nullptr)
