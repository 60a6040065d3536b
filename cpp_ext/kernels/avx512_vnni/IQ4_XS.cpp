// IQ4_XS on AVX-512 VNNI: w = d * scale * (step[q] + 127) - 127 d * scale; 16 bytes are a group.
#include "../codebooks.h"
#include "fields.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 240, kBlock = 256, kBlockBytes = sizeof(BlockIQ4_XS);
  static constexpr float kMinFactor = 127;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockIQ4_XS& block = *reinterpret_cast<const BlockIQ4_XS*>(bytes);
    Unit w;
    for (int j = 0; j < 4; ++j) {
      const uint8_t* qs = block.qs + 32 * j;
      w.codes[j] = look_up(kStepsIQ4_NL, 127, nibbles_of_pair(qs, qs + 16));
    }
    const __m256 scales = scales_of(block);
    set_scales(w, scales, scales);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(IQ4_XS, Format, Tiled<Format>::multiply)
