// What a kernel is: the contract between the code that schedules work and the objects in
// kernels/<tier>/.
//
// A kernel object implements one (tier, quant type) pair and exports one symbol,
// `hk2_<tier>_<quant>()`. It includes only this header, quant_blocks.h, <immintrin.h> and C
// headers, and keeps everything else in an anonymous namespace: inline functions or STL templates
// shared with other objects would let the linker keep an AVX-512 copy for all.
#pragma once

#include <stdint.h>

namespace hk2 {

constexpr int kActivationBlock = 32;  // activations are quantised in blocks of 32 along k
constexpr int kActivationPad = 256;   // rows of codes are zero-padded to a multiple of this
constexpr int kSameBits = 8;  // up to so many tokens in a call, each gets the bits it gets alone

// One token's input vector. Integer quant types read codes, scales and sums; float types read
// values; what a type does not read may be null. x[32 b + i] ~ scales[b] * codes[32 b + i]. The
// arrays of scales and sums are padded like the codes, and 64 bytes past their end may be read.
struct ActivationRow {
  const int8_t* codes;  // [cols, padded] in -127..127, 64-byte aligned
  const float* scales;  // [cols / 32]
  const float* sums;  // [cols / 32]  scale * sum of the 32 codes: for the minimum or the offset of
                      // a weight group
  const float* half_sums;  // [cols / 16]  the same for groups of 16
  const float* values;     // [cols] any alignment
};

// y[t * y_stride + r] = sum over k of weight[r][k] * x[t][k], for 0 <= r < rows, 0 <= t < tokens.
// The result for a token does not depend on the other tokens' values. Up to kSameBits tokens it
// does not depend on their number either, bit for bit; beyond, a kernel may sum in another order.
struct Multiply {
  const uint8_t* weights;  // [rows, row_bytes] stored blocks, any alignment
  const uint8_t* next;     // what this thread will read afterwards, for the prefetcher; may be null
  int64_t row_bytes;
  int64_t rows;
  int64_t cols;            // a multiple of the type's block size
  const ActivationRow* x;  // [tokens]
  int64_t tokens;
  float* y;
  int64_t y_stride;
};

// One (tier, quant) pair. A null member falls to the parent tier.
struct Kernel {
  void (*multiply)(const Multiply& call);
  void (*dequantise)(const uint8_t* blocks, int64_t n,
                     float* out);  // n weights, a multiple of the block size
};

// What a tier does to activations.
struct ActivationKernel {
  // Quantises x[32 * blocks]; outputs as in ActivationRow. A NaN in a block makes its scale NaN.
  void (*quantise)(const float* x, int64_t blocks, int8_t* codes, float* scales, float* sums,
                   float* half_sums);
  // gate[i] = silu(gate[i]) * up[i]
  void (*silu_multiply)(float* gate, const float* up, int64_t n);
};

}  // namespace hk2
