// TQ1_0 on AVX-512 VNNI: w = d * q - d; digits in base 3.
#include "fields.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 2, kBlock = 256, kBlockBytes = sizeof(BlockTQ1_0);
  static constexpr float kMinFactor = 1;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockTQ1_0& block = *reinterpret_cast<const BlockTQ1_0*>(bytes);
    Unit w;
    const Digits digits = digits_of(block);
    for (int j = 0; j < 4; ++j) w.codes[j] = join(digits.codes[2 * j], digits.codes[2 * j + 1]);
    const __m256 d = broadcast_half(block.d);
    set_scales(w, d, d);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, TQ1_0, TiledKernel<Format>::multiply, decode<Format>)
