// IQ2_XS: w = d * (scale + 1/2) / 4 * sign * grid per group of 16; runs of 8 from a grid of 512.
#include "../grids/IQ2_XS.h"

#include "../codebooks.h"
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockIQ2_XS;
  using Codes = Unpacked<256, 16>;

  static void unpack(const Block& block, Codes& out) {
    const float d = half_to_float(block.d);
    for (int g = 0; g < 16; ++g) {
      const int scale = block.scales[g / 2] >> (g % 2 * 4) & 15;
      out.scales[g] = d * (0.5f + static_cast<float>(scale)) * 0.25f;
      out.mins[g] = 0;
    }
    for (int r = 0; r < 32; ++r)  // 9 bits of index, 7 of signs
      signed_run(kGridIQ2_XS[block.qs[r] & 511], even_signs(block.qs[r] >> 9), out.codes + 8 * r);
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(IQ2_XS, QuantisedKernel<Format>)
