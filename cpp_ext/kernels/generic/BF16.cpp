// BF16: the upper half of a float32.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Stored = uint16_t;
  static float to_float(Stored stored) {
    return float_from_bits(static_cast<uint32_t>(stored) << 16);
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(BF16, FloatKernel<Format>)
