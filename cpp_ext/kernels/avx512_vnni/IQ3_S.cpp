// IQ3_S on AVX-512 VNNI: runs of 4 with signs, groups of 32; codes are magnitudes of at most 15,
// plus 15.
#include "../grids/IQ3_S.h"

#include "laned.h"

namespace hk2 {
namespace {

struct Format {
  using Order = ByRun8;
  static constexpr int kGroup = 32, kMaxCode = 30, kOffset = 15, kShift = 0;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ3_S);
  static constexpr bool kInPairs = false;
  static constexpr float kFactor = 1;

  static HK2_INLINE LanedUnit load_lanes(const uint8_t* bytes) {
    const BlockIQ3_S& block = *reinterpret_cast<const BlockIQ3_S*>(bytes);
    LanedUnit w;
    const Signs signs(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.signs)));
    const __m512i lanes = _mm512_loadu_si512(block.qs);
    const __m512i ninths = _mm512_cvtepu8_epi64(load_8(block.qh));  // a bit for each index
    for (int j = 0; j < 4; ++j) {
      // Word j of each lane: two indices, one in each half.
      const int at = 2 * j;
      const __m512i pick =
          _mm512_set4_epi32(~0xff | (at + 9), ~0xff | (at + 8), ~0xff | (at + 1), ~0xff | at);
      const __m512i low = _mm512_shuffle_epi8(lanes, pick);
      const __mmask16 ninth = _mm512_test_epi32_mask(
          low_twice(ninths), _mm512_set1_epi64((1ll << at) | (2ll << (at + 32))));
      const __m512i indices = _mm512_mask_add_epi32(low, ninth, low, _mm512_set1_epi32(256));
      w.codes[j] = signs.apply(j, runs_of_4(kGridIQ3_S, indices), _mm512_set1_epi8(15));
    }
    set_scales_of_nibbles(w, block);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, IQ3_S, multiply_laned<Format>, decode<Natural<Format>>)
