// IQ4_XS: w = d * (scale - 32) * kSteps[q] per group of 32; 6-bit scales, q in 0..15 as in IQ4_NL.
#include "../codebooks.h"
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockIQ4_XS;
  using Codes = Unpacked<256, 32>;

  static void unpack(const Block& block, Codes& out) {
    const float d = half_to_float(block.d);
    for (int g = 0; g < 8; ++g) {
      const int low = block.scales_l[g / 2] >> (g % 2 * 4) & 15;
      const int high = block.scales_h >> (2 * g) & 3;
      out.scales[g] = d * static_cast<float>((low | high << 4) - 32);
      out.mins[g] = 0;
    }
    // 16 bytes are a group: low nibbles first.
    for (int i = 0; i < 256; ++i)
      out.codes[i] = kStepsIQ4_NL[block.qs[i / 32 * 16 + i % 16] >> (i % 32 / 16 * 4) & 15];
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(IQ4_XS, QuantisedKernel<Format>)
