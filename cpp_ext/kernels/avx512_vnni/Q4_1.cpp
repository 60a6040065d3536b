// Q4_1 on AVX-512 VNNI: w = d * q + m.
#include "fields.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 15, kBlock = 32, kBlockBytes = sizeof(BlockQ4_1);
  static constexpr float kMinFactor = -1;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockQ4_1* block = reinterpret_cast<const BlockQ4_1*>(bytes);
    Unit w;
    for (int j = 0; j < 4; ++j) w.codes[j] = nibbles_of_pair(block[2 * j].qs, block[2 * j + 1].qs);
    const Halves halves = block_halves(block);
    set_scales(w, halves.first, halves.second);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(Q4_1, Format, Tiled<Format>::multiply)
