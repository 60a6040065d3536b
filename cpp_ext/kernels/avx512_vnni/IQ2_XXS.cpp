// IQ2_XXS on AVX-512 VNNI: runs of 8 with signs, groups of 32; codes are magnitudes of at most 43,
// plus 43.
#include "../grids/IQ2_XXS.h"

#include "laned.h"

namespace hk2 {
namespace {

struct Format {
  using Order = ByRun8;
  static constexpr int kGroup = 32, kMaxCode = 86, kOffset = 43, kShift = 0;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ2_XXS);
  static constexpr bool kInPairs = false;
  static constexpr float kFactor = 0.125f;

  static HK2_INLINE LanedUnit load_lanes(const uint8_t* bytes) { return load<Order>(bytes); }
  static HK2_INLINE LanedUnit load_natural(const uint8_t* bytes) { return load<Sequential>(bytes); }

 private:
  template <class Runs>
  static HK2_INLINE LanedUnit load(const uint8_t* bytes) {
    const BlockIQ2_XXS& block = *reinterpret_cast<const BlockIQ2_XXS*>(bytes);
    LanedUnit w;
    const __m512i lanes = _mm512_loadu_si512(block.groups);  // four indices, then signs and scale
    const Signs signs(
        Runs::signs(even_signs_of_words(_mm512_cvtepi64_epi32(_mm512_srli_epi64(lanes, 32)))));
    const __m512i indices = _mm512_shuffle_epi8(
        lanes, _mm512_set4_epi32(0xff0bff0a, 0xff09ff08, 0xff03ff02, 0xff01ff00));
    for (int j = 0; j < 4; ++j)
      w.codes[j] = signs.apply(j, runs_of_8<Runs>(kGridIQ2_XXS, indices, j), _mm512_set1_epi8(43));
    w.scales[0] = odd_scales(high_twice(lanes), 28, 15, broadcast_scale(block.d));
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(IQ2_XXS, Natural<Format>, multiply_laned<Format, 8>)
