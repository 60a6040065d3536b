// Q4_K on AVX2: 32 bytes hold groups 2 j (low nibbles) and 2 j + 1 (high nibbles).
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 256, kBlockBytes = sizeof(BlockQ4_K);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockQ4_K& block = *reinterpret_cast<const BlockQ4_K*>(bytes);
    for (int j = 0; j < 4; ++j) {
      const __m256i nibbles = load_32(block.qs + 32 * j);
      w.codes[2 * j] = low_nibbles(nibbles);
      w.codes[2 * j + 1] = high_nibbles(nibbles);
    }
    const ScalesAndMins groups = scales_of_k4(block);
    w.scales[0] = groups.scales;
    w.mins[0] = groups.mins;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, Q4_K, Tiled<Format>::multiply)
