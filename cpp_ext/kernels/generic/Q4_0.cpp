// Q4_0: w = d * (q - 8), q in 0..15. Byte i holds weight i (low nibble) and weight i + 16 (high
// nibble).
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockQ4_0;
  using Codes = Unpacked<32, 32>;

  static void unpack(const Block& block, Codes& out) {
    out.scales[0] = half_to_float(block.d);
    out.mins[0] = 0;
    for (int i = 0; i < 16; ++i) {
      out.codes[i] = static_cast<int8_t>((block.qs[i] & 15) - 8);
      out.codes[16 + i] = static_cast<int8_t>((block.qs[i] >> 4) - 8);
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(Q4_0, QuantisedKernel<Format>)
