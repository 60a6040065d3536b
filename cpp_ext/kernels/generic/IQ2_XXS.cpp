// IQ2_XXS: w = d * (scale + 1/2) / 4 * sign * grid per group of 32; runs of 8 from a grid of 256.
#include "../grids/IQ2_XXS.h"

#include "../codebooks.h"
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockIQ2_XXS;
  using Codes = Unpacked<256, 32>;

  static void unpack(const Block& block, Codes& out) {
    const float d = half_to_float(block.d);
    for (int g = 0; g < 8; ++g) {
      const uint32_t signs = block.groups[g].signs;  // four times 7 bits, and the scale
      out.scales[g] = d * (0.5f + static_cast<float>(signs >> 28)) * 0.25f;
      out.mins[g] = 0;
      for (int r = 0; r < 4; ++r)
        signed_run(kGridIQ2_XXS[block.groups[g].qs[r]], even_signs(signs >> (7 * r) & 127),
                   out.codes + 32 * g + 8 * r);
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(IQ2_XXS, QuantisedKernel<Format>)
