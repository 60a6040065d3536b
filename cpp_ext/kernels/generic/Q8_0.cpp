// Q8_0: w = d * q, q in -128..127.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockQ8_0;
  using Codes = Unpacked<32, 32>;

  static void unpack(const Block& block, Codes& out) {
    out.scales[0] = half_to_float(block.d);
    out.mins[0] = 0;
    for (int i = 0; i < 32; ++i) out.codes[i] = block.qs[i];
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(Q8_0, QuantisedKernel<Format>)
