// IQ3_S on AVX-512 VBMI: as on VNNI, with the grid in registers.
#include "../grids/IQ3_S.h"

#include "planes.h"

namespace hk2 {
namespace {

constexpr int number_of(int magnitude) { return magnitude >> 1; }  // 1, 3, ... 15
constexpr Plane<512, 4> kFirst(kGridIQ3_S, 0, number_of), kSecond(kGridIQ3_S, 2, number_of);

struct Format {
  using Order = ByQuarter;
  static constexpr int kGroup = 32, kMaxCode = 30, kOffset = 15, kShift = 0;
  static constexpr int kBlock = 256, kBlockBytes = sizeof(BlockIQ3_S);
  static constexpr bool kInPairs = false;
  static constexpr float kFactor = 1;

  static HK2_INLINE LanedUnit load_natural(const uint8_t* bytes) {
    return to_natural<Format>(bytes);
  }
  static HK2_INLINE LanedUnit load_lanes(const uint8_t* bytes) {
    const BlockIQ3_S& block = *reinterpret_cast<const BlockIQ3_S*>(bytes);
    LanedUnit w;
    const __m512i indices = _mm512_loadu_si512(block.qs);
    uint64_t ninth;
    memcpy(&ninth, block.qh, 8);
    const Parts<512> parts(indices, _cvtu64_mask64(ninth));
    const __m512i fours = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x1c1814100c080400),
                                                       _mm512_cvtepu32_epi64(load_32(block.signs)));
    set_codes(w, kFirst.look_up(indices, parts), kSecond.look_up(indices, parts),
              NibbleSigns<4>(fours),
              _mm512_broadcast_i32x4(
                  _mm_setr_epi8(16, 18, 20, 22, 24, 26, 28, 30, 14, 12, 10, 8, 6, 4, 2, 0)));
    set_scales_of_nibbles(w, block);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vbmi, IQ3_S, multiply_laned<Format, 8>, nullptr)
