// TQ1_0 on AVX2: w = d * q - d; digits in base 3.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 256, kBlockBytes = sizeof(BlockTQ1_0);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockTQ1_0& block = *reinterpret_cast<const BlockTQ1_0*>(bytes);
    const Digits digits = digits_of(block);
    for (int b = 0; b < 8; ++b) w.codes[b] = digits.codes[b];
    w.scales[0] = w.mins[0] = broadcast_half(block.d);
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, TQ1_0, Tiled<Format>::multiply)
