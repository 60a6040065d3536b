// IQ1_M: w = d * (2 scale + 1) * (grid + shift) per group of 16; runs as in IQ1_S, a shift for
// each. The four nibbles of d, a half float, lie on top of the four words of scales.
#include "../codebooks.h"
#include "../grids/IQ1_S.h"
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockIQ1_M;
  using Codes = Unpacked<256, 16>;

  static void unpack(const Block& block, Codes& out) {
    uint16_t half = 0;
    for (int i = 0; i < 4; ++i)
      half = static_cast<uint16_t>(half | (block.scales[i] >> 12) << (4 * i));
    const float d = half_to_float(half);
    for (int g = 0; g < 16; ++g) {
      const int scale = block.scales[g / 4] >> (3 * (g % 4)) & 7;
      out.scales[g] = d * static_cast<float>(2 * scale + 1) * 0.125f;
      out.mins[g] = 0;
    }
    for (int r = 0; r < 32; ++r) {
      const int nibble = block.qh[r / 2] >> (r % 2 * 4) & 15;  // 3 bits of index, 1 of shift
      const int index = block.qs[r] | (nibble & 7) << 8;
      shifted_run(kGridIQ1_S[index], nibble & 8 ? -1 : 1, out.codes + 8 * r);
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(IQ1_M, QuantisedKernel<Format>)
