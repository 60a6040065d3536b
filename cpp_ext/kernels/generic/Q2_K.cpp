// Q2_K: w = d * scale * q - dmin * min per group of 16; scale (low) and min (high) in 4 bits, q in
// 0..3.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockQ2_K;
  using Codes = Unpacked<256, 16>;

  static void unpack(const Block& block, Codes& out) {
    const float d = half_to_float(block.d), dmin = half_to_float(block.dmin);
    for (int g = 0; g < 16; ++g) {
      out.scales[g] = d * static_cast<float>(block.scales[g] & 15);
      out.mins[g] = dmin * static_cast<float>(block.scales[g] >> 4);
    }
    // Each half of the block lies in 32 bytes: bits 2j..2j+1 of byte i are weight 32 j + i.
    for (int i = 0; i < 256; ++i)
      out.codes[i] = static_cast<int8_t>(block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3);
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(Q2_K, QuantisedKernel<Format>)
