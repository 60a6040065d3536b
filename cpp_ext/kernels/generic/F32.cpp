// F32: float32.
#include "scalar.h"

namespace hk2 {
namespace {

struct Format {
  using Stored = float;
  static float to_float(Stored stored) { return stored; }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(F32, FloatKernel<Format>)
