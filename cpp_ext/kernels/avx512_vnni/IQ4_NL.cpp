// IQ4_NL on AVX-512 VNNI: w = d * (step[q] + 127) - 127 d.
#include "../codebooks.h"
#include "fields.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 240, kBlock = 32, kBlockBytes = sizeof(BlockIQ4_NL);
  static constexpr float kMinFactor = 127;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockIQ4_NL* block = reinterpret_cast<const BlockIQ4_NL*>(bytes);
    Unit w;
    for (int j = 0; j < 4; ++j) {
      const __m512i nibbles = nibbles_of_pair(block[2 * j].qs, block[2 * j + 1].qs);
      w.codes[j] = look_up(kStepsIQ4_NL, 127, nibbles);
    }
    const __m256 d = block_halves(block).first;
    set_scales(w, d, d);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(IQ4_NL, Format, Tiled<Format>::multiply)
