// IQ3_S: w = d * (2 scale + 1) * sign * grid per group of 32; runs of 4 from a grid of 512.
#include "../grids/IQ3_S.h"

#include "../codebooks.h"
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockIQ3_S;
  using Codes = Unpacked<256, 32>;

  static void unpack(const Block& block, Codes& out) {
    const float d = half_to_float(block.d);
    for (int g = 0; g < 8; ++g) {
      const int scale = block.scales[g / 2] >> (g % 2 * 4) & 15;
      out.scales[g] = d * static_cast<float>(2 * scale + 1);
      out.mins[g] = 0;
    }
    for (int r = 0; r < 32; ++r) {  // two runs of 4; a ninth bit of index for each
      const int high = block.qh[r / 4] >> (r % 4 * 2) & 3;
      const uint64_t first = kGridIQ3_S[block.qs[2 * r] | (high & 1) << 8];
      const uint64_t second = kGridIQ3_S[block.qs[2 * r + 1] | (high >> 1) << 8];
      signed_run(first | second << 32, block.signs[r], out.codes + 8 * r);
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(IQ3_S, QuantisedKernel<Format>)
