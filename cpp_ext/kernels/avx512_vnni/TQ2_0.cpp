// TQ2_0 on AVX-512 VNNI: w = d * q - d; two bits as in Q2_K.
#include "fields.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 3, kBlock = 256, kBlockBytes = sizeof(BlockTQ2_0);
  static constexpr float kMinFactor = 1;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockTQ2_0& block = *reinterpret_cast<const BlockTQ2_0*>(bytes);
    Unit w;
    for (int j = 0; j < 4; ++j) w.codes[j] = two_bits(block.qs, j);
    const __m256 d = broadcast_half(block.d);
    set_scales(w, d, d);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(TQ2_0, Format, Tiled<Format>::multiply)
