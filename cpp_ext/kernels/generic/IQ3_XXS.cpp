// IQ3_XXS: w = d * (scale + 1/2) / 2 * sign * grid per group of 32; runs of 4 from a grid of 256.
#include "../grids/IQ3_XXS.h"

#include "../codebooks.h"
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockIQ3_XXS;
  using Codes = Unpacked<256, 32>;

  static void unpack(const Block& block, Codes& out) {
    const float d = half_to_float(block.d);
    for (int g = 0; g < 8; ++g) {
      const uint32_t signs = block.signs[g];  // four times 7 bits, and the scale
      out.scales[g] = d * (0.5f + static_cast<float>(signs >> 28)) * 0.5f;
      out.mins[g] = 0;
      for (int r = 0; r < 4; ++r) {
        const uint8_t* q = block.qs + 8 * g + 2 * r;
        const uint64_t run = kGridIQ3_XXS[q[0]] | static_cast<uint64_t>(kGridIQ3_XXS[q[1]]) << 32;
        signed_run(run, even_signs(signs >> (7 * r) & 127), out.codes + 32 * g + 8 * r);
      }
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(IQ3_XXS, QuantisedKernel<Format>)
