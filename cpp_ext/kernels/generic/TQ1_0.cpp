// TQ1_0: w = d * (q - 1), q in 0..2, five to a byte. A byte is a fraction of 256 in base 3: digit n
// is the whole part of 3 * (byte * 3^n mod 256) / 256.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Block = BlockTQ1_0;
  using Codes = Unpacked<256, 32>;

  static void unpack(const Block& block, Codes& out) {
    for (int g = 0; g < 8; ++g) {
      out.scales[g] = half_to_float(block.d);
      out.mins[g] = 0;
    }
    // Of a run of k bytes, byte i holds the weights k n + i.
    int8_t* codes = out.codes;
    codes = digits(block.qs, 32, 5, codes);
    codes = digits(block.qs + 32, 16, 5, codes);
    digits(block.qh, 4, 4, codes);
  }

 private:
  static int8_t* digits(const uint8_t* bytes, int count, int num_digits, int8_t* codes) {
    int power = 1;
    for (int n = 0; n < num_digits; ++n, power *= 3)
      for (int i = 0; i < count; ++i)
        *codes++ = static_cast<int8_t>(((bytes[i] * power & 255) * 3 >> 8) - 1);
    return codes;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(TQ1_0, QuantisedKernel<Format>)
