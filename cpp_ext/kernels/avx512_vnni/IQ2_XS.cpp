// IQ2_XS on AVX-512 VNNI: runs of 8 with signs, groups of 16; codes are magnitudes of at most 43,
// plus 43.
#include "../grids/IQ2_XS.h"

#include "laned.h"

namespace hk2 {
namespace {

struct Format {
  using Order = ByRun8;
  static constexpr int kGroup = 16, kMaxCode = 86, kOffset = 43, kShift = 0;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ2_XS);
  static constexpr bool kInPairs = false;
  static constexpr float kFactor = 0.125f;

  static HK2_INLINE LanedUnit load_lanes(const uint8_t* bytes) { return load<Order>(bytes); }
  static HK2_INLINE LanedUnit load_natural(const uint8_t* bytes) { return load<Sequential>(bytes); }

 private:
  template <class Runs>
  static HK2_INLINE LanedUnit load(const uint8_t* bytes) {
    const BlockIQ2_XS& block = *reinterpret_cast<const BlockIQ2_XS*>(bytes);
    LanedUnit w;
    const __m512i lanes = _mm512_loadu_si512(block.qs);  // words: 9 bits of index, 7 of signs
    const Signs signs(
        Runs::signs(add_even_sign(_mm512_cvtepi16_epi8(_mm512_srli_epi16(lanes, 9)))));
    const __m512i indices = _mm512_and_si512(lanes, _mm512_set1_epi16(511));
    for (int j = 0; j < 4; ++j)
      w.codes[j] = signs.apply(j, runs_of_8<Runs>(kGridIQ2_XS, indices, j), _mm512_set1_epi8(43));
    set_scales_of_bytes<Order>(w, block.scales, block.d);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(IQ2_XS, Natural<Format>, multiply_laned<Format, 8>)
