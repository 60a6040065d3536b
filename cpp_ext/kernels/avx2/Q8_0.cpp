// Q8_0 on AVX2: w = d * q, signed codes.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 32, kBlockBytes = sizeof(BlockQ8_0);
  static constexpr bool kSigned = true;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockQ8_0* block = reinterpret_cast<const BlockQ8_0*>(bytes);
    for (int b = 0; b < 8; ++b) w.codes[b] = load_32(block[b].qs);
    w.scales[0] = block_scales(block);
    w.mins[0] = _mm256_setzero_ps();
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, Q8_0, Tiled<Format>::multiply)
