// Q5_K: w = d * scale * q - dmin * min per group of 32; as Q4_K, bit g of qh[i] is the fifth bit in
// group g.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockQ5_K;
  using Codes = Unpacked<256, 32>;

  static void unpack(const Block& block, Codes& out) {
    const float d = half_to_float(block.d), dmin = half_to_float(block.dmin);
    uint8_t scales[8], mins[8];
    unpack_scales_k4(block.scales, scales, mins);
    for (int g = 0; g < 8; ++g) {
      out.scales[g] = d * static_cast<float>(scales[g]);
      out.mins[g] = dmin * static_cast<float>(mins[g]);
    }
    for (int i = 0; i < 256; ++i) {
      const int low = block.qs[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
      const int high = block.qh[i % 32] >> (i / 32) & 1;
      out.codes[i] = static_cast<int8_t>(low | high << 4);
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(Q5_K, QuantisedKernel<Format>)
