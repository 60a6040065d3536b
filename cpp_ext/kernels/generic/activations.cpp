// Quantisation of activations and SiLU, in plain C: the specification.
#include <math.h>

#include "scalar.h"

namespace hk2 {
namespace {

constexpr float kTiny =
    1e-30f;  // below this the inverse scale overflows; such a block counts as zero

void quantise(const float* x, int64_t blocks, int8_t* codes, float* scales, float* sums,
              float* half_sums) {
  for (int64_t b = 0; b < blocks; ++b, x += kActivationBlock, codes += kActivationBlock) {
    // Magnitudes compared as integers, so that a NaN, larger than any number, reaches the scale.
    uint32_t largest = 0;
    for (int i = 0; i < kActivationBlock; ++i) {
      uint32_t bits;
      memcpy(&bits, x + i, sizeof bits);
      bits &= 0x7fffffff;
      if (bits > largest) largest = bits;
    }
    const float max = float_from_bits(largest);
    const float scale = max < kTiny ? 0 : max / 127, inverse = max < kTiny ? 0 : 127 / max;
    int32_t half[2] = {0, 0};
    for (int i = 0; i < kActivationBlock; ++i) {
      const float scaled = x[i] * inverse;
      const int32_t code = scaled > -128 && scaled < 128 ? static_cast<int32_t>(lrintf(scaled)) : 0;
      codes[i] = static_cast<int8_t>(code);
      half[i / 16] += code;
    }
    scales[b] = scale;
    half_sums[2 * b] = scale * static_cast<float>(half[0]);
    half_sums[2 * b + 1] = scale * static_cast<float>(half[1]);
    sums[b] = scale * static_cast<float>(half[0] + half[1]);
  }
}

void silu_multiply(float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) gate[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

const ActivationKernel kKernel = {quantise, silu_multiply};

}  // namespace
}  // namespace hk2

extern "C" const hk2::ActivationKernel* hk2_generic_activations() { return &hk2::kKernel; }
