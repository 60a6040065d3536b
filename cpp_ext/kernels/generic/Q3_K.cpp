// Q3_K: w = d * (scale - 32) * q per group of 16; 6-bit scales, q in -4..3 from two bits and a mask
// bit.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockQ3_K;
  using Codes = Unpacked<256, 16>;

  static void unpack(const Block& block, Codes& out) {
    const float d = half_to_float(block.d);
    for (int g = 0; g < 16; ++g) {
      const int low = g < 8 ? block.scales[g] & 15 : block.scales[g - 8] >> 4;
      const int high = block.scales[8 + g % 4] >> (g / 4 * 2) & 3;
      out.scales[g] = d * static_cast<float>((low | high << 4) - 32);
      out.mins[g] = 0;
    }
    // Two bits as in Q2_K; a clear bit i / 32 of hmask[i % 32] subtracts 4.
    for (int i = 0; i < 256; ++i) {
      const int low = block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
      const int high = block.hmask[i % 32] >> (i / 32) & 1;
      out.codes[i] = static_cast<int8_t>(low - (high ? 0 : 4));
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(Q3_K, QuantisedKernel<Format>)
