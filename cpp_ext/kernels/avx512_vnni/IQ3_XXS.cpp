// IQ3_XXS on AVX-512 VNNI: runs of 4 with signs, groups of 32; codes are magnitudes of at most 62,
// plus 62.
#include "../grids/IQ3_XXS.h"

#include "laned.h"

namespace hk2 {
namespace {

struct Format {
  using Order = ByRun8;
  static constexpr int kGroup = 32, kMaxCode = 124, kOffset = 62, kShift = 0;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ3_XXS);
  static constexpr bool kInPairs = false;
  static constexpr float kFactor = 0.25f;

  static HK2_INLINE LanedUnit load_lanes(const uint8_t* bytes) { return load<Order>(bytes); }
  static HK2_INLINE LanedUnit load_natural(const uint8_t* bytes) { return load<Sequential>(bytes); }

 private:
  template <class Runs>
  static HK2_INLINE LanedUnit load(const uint8_t* bytes) {
    const BlockIQ3_XXS& block = *reinterpret_cast<const BlockIQ3_XXS*>(bytes);
    LanedUnit w;
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.signs));
    const Signs signs(Runs::signs(even_signs_of_words(words)));
    const __m512i bytes_of_indices = _mm512_loadu_si512(block.qs);
    for (int j = 0; j < 4; ++j) {
      const __m512i runs = runs_of_4(kGridIQ3_XXS, Runs::byte_indices(bytes_of_indices, j));
      w.codes[j] = signs.apply(j, runs, _mm512_set1_epi8(62));
    }
    const __m512i groups = low_twice(_mm512_cvtepu32_epi64(words));
    w.scales[0] = odd_scales(groups, 28, 15, broadcast_scale(block.d));
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(IQ3_XXS, Natural<Format>, multiply_laned<Format, 8>)
