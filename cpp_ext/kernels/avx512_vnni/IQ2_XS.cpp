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

  static HK2_INLINE LanedUnit load_lanes(const uint8_t* bytes) {
    const BlockIQ2_XS& block = *reinterpret_cast<const BlockIQ2_XS*>(bytes);
    LanedUnit w;
    const __m512i lanes = _mm512_loadu_si512(block.qs);  // words: 9 bits of index, 7 of signs
    const Signs signs(add_even_sign(_mm512_cvtepi16_epi8(_mm512_srli_epi16(lanes, 9))));
    for (int j = 0; j < 4; ++j) {
      const __m512i indices =
          _mm512_and_si512(_mm512_srli_epi64(lanes, 16u * j), _mm512_set1_epi64(511));
      w.codes[j] = signs.apply(j, runs_of_8(kGridIQ2_XS, indices), _mm512_set1_epi8(43));
    }
    set_scales_of_bytes<Order>(w, block.scales, block.d);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, IQ2_XS, multiply_laned<Format>, decode<Natural<Format>>)
