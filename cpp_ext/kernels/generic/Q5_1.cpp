// Q5_1: w = d * q + m, q in 0..31. Bits as in Q5_0.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockQ5_1;
  using Codes = Unpacked<32, 32>;

  static void unpack(const Block& block, Codes& out) {
    out.scales[0] = half_to_float(block.d);
    out.mins[0] = -half_to_float(block.m);
    for (int i = 0; i < 32; ++i) {
      const int low = i < 16 ? block.qs[i] & 15 : block.qs[i - 16] >> 4;
      const int high = block.qh[i / 8] >> i % 8 & 1;
      out.codes[i] = static_cast<int8_t>(low | high << 4);
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(Q5_1, QuantisedKernel<Format>)
