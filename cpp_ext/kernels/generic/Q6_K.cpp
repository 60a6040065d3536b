// Q6_K: w = d * scale * (q - 32) per group of 16; signed 8-bit scales, q in 0..63.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockQ6_K;
  using Codes = Unpacked<256, 16>;

  static void unpack(const Block& block, Codes& out) {
    const float d = half_to_float(block.d);
    for (int g = 0; g < 16; ++g) {
      out.scales[g] = d * static_cast<float>(block.scales[g]);
      out.mins[g] = 0;
    }
    // Each half of the block: low nibbles of 64 bytes are weights 0..63, high nibbles 64..127; bits
    // 2j..2j+1 of byte i of the 32 upper bytes belong to weight 32 j + i.
    for (int i = 0; i < 256; ++i) {
      const int half = i / 128, k = i % 128;
      const int low = block.ql[half * 64 + k % 64] >> (k / 64 * 4) & 15;
      const int high = block.qh[half * 32 + k % 32] >> (k / 32 * 2) & 3;
      out.codes[i] = static_cast<int8_t>((low | high << 4) - 32);
    }
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(Q6_K, QuantisedKernel<Format>)
