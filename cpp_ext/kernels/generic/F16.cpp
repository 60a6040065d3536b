// F16: IEEE half.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Stored = uint16_t;
  static float to_float(Stored stored) { return half_to_float(stored); }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(F16, FloatKernel<Format>)
