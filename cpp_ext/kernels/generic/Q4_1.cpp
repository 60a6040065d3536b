// Q4_1: w = d * q + m, q in 0..15. Nibbles as in Q4_0.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockQ4_1;
  using Codes = Unpacked<32, 32>;

  static void unpack(const Block& block, Codes& out) {
    out.scales[0] = half_to_float(block.d);
    out.mins[0] = -half_to_float(block.m);
    for (int i = 0; i < 16; ++i) {
      out.codes[i] = static_cast<int8_t>(block.qs[i] & 15);
      out.codes[16 + i] = static_cast<int8_t>(block.qs[i] >> 4);
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(Q4_1, QuantisedKernel<Format>)
