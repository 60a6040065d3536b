// IQ1_S: w = d * (2 scale + 1) * (grid + shift) per group of 32; ternary runs of 8 from a grid of
// 2048, the shift is 1/8 or -1/8. Codes are eight times their sum.
#include "../grids/IQ1_S.h"

#include "../codebooks.h"
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockIQ1_S;
  using Codes = Unpacked<256, 32>;

  static void unpack(const Block& block, Codes& out) {
    const float d = half_to_float(block.d);
    for (int g = 0; g < 8; ++g) {
      const int word = block.qh[g];  // four times 3 bits of index, 3 of scale, 1 of shift
      out.scales[g] = d * static_cast<float>(2 * (word >> 12 & 7) + 1) * 0.125f;
      out.mins[g] = 0;
      for (int r = 0; r < 4; ++r) {
        const int index = block.qs[4 * g + r] | (word >> (3 * r) & 7) << 8;
        shifted_run(kGridIQ1_S[index], word & 0x8000 ? -1 : 1, out.codes + 32 * g + 8 * r);
      }
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(IQ1_S, QuantisedKernel<Format>)
