// IQ1_S on AVX2: ternary runs of 8, groups of 32; w = scale * 8 (grid + 1) - min.
#include "../grids/IQ1_S.h"

#include "runs.h"
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 256, kBlockBytes = sizeof(BlockIQ1_S);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockIQ1_S& block = *reinterpret_cast<const BlockIQ1_S*>(bytes);
    for (int g = 0; g < 8; ++g) {
      const uint8_t* q = block.qs + 4 * g;
      const int high = block.qh[g];
      w.codes[g] = runs_of_8(kGridIQ1_S, q[0] | (high << 8 & 0x700), q[1] | (high << 5 & 0x700),
                             q[2] | (high << 2 & 0x700), q[3] | (high >> 1 & 0x700));
    }
    const ScalesAndMins groups = scales_of(block);
    w.scales[0] = groups.scales;
    w.mins[0] = groups.mins;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, IQ1_S, Tiled<Format>::multiply)
