// MXFP4: w = 2^(e - 128) * kSteps[q], q in 0..15: twice the values of a four-bit float, so that
// they are integers. Nibbles as in Q4_0.
#include "../codebooks.h"
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockMXFP4;
  using Codes = Unpacked<32, 32>;

  static void unpack(const Block& block, Codes& out) {
    // The exponents 0 and 1 make subnormal numbers.
    const uint32_t e = block.e;
    out.scales[0] = float_from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    out.mins[0] = 0;
    for (int i = 0; i < 16; ++i) {
      out.codes[i] = kStepsMXFP4[block.qs[i] & 15];
      out.codes[16 + i] = kStepsMXFP4[block.qs[i] >> 4];
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(MXFP4, QuantisedKernel<Format>)
