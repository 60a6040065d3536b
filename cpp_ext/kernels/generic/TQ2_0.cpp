// TQ2_0: w = d * (q - 1), q in 0..3 (3 is not used by quantisers). Two bits as in Q2_K.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockTQ2_0;
  using Codes = Unpacked<256, 32>;

  static void unpack(const Block& block, Codes& out) {
    for (int g = 0; g < 8; ++g) {
      out.scales[g] = half_to_float(block.d);
      out.mins[g] = 0;
    }
    for (int i = 0; i < 256; ++i)
      out.codes[i] =
          static_cast<int8_t>((block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) - 1);
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(TQ2_0, QuantisedKernel<Format>)
