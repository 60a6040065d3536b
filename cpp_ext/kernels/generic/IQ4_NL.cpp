// IQ4_NL: w = d * kSteps[q], q in 0..15, a table of uneven steps. Nibbles as in Q4_0.
#include "../codebooks.h"
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockIQ4_NL;
  using Codes = Unpacked<32, 32>;

  static void unpack(const Block& block, Codes& out) {
    out.scales[0] = half_to_float(block.d);
    out.mins[0] = 0;
    for (int i = 0; i < 16; ++i) {
      out.codes[i] = kStepsIQ4_NL[block.qs[i] & 15];
      out.codes[16 + i] = kStepsIQ4_NL[block.qs[i] >> 4];
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(IQ4_NL, QuantisedKernel<Format>)
