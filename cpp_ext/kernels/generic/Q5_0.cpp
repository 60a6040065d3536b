// Q5_0: w = d * (q - 16), q in 0..31. Low four bits as in Q4_0; bit i of the 32-bit word qh is
// weight i's fifth.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockQ5_0;
  using Codes = Unpacked<32, 32>;

  static void unpack(const Block& block, Codes& out) {
    out.scales[0] = half_to_float(block.d);
    out.mins[0] = 0;
    for (int i = 0; i < 32; ++i) {
      const int low = i < 16 ? block.qs[i] & 15 : block.qs[i - 16] >> 4;
      const int high = block.qh[i / 8] >> i % 8 & 1;
      out.codes[i] = static_cast<int8_t>((low | high << 4) - 16);
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(Q5_0, QuantisedKernel<Format>)
