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
constexpr int kActivationPad = 512;   // rows of codes are zero-padded to a multiple of this
constexpr int kSameBits = 8;  // up to so many tokens in a call, each gets the bits it gets alone

// One token's input vector. Integer quant types read codes, scales and sums; float types read
// values; what a type does not read may be null. x[32 b + i] ~ scales[b] * codes[32 b + i]. The
// arrays of scales and sums are padded like the codes, so 64 bytes from an even multiple of 32 are
// a row's own; behind its end lies another's, which a thread may be writing.
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

// Rows of weights, rounded to bfloat16, as the left operands of tile products: [columns / 32]
// [kTileRows][32]. What belongs to rows or columns beyond may be overwritten.
constexpr int kTileCols = 32;  // columns are padded to a multiple of this
constexpr int kTileRows = 32;  // weight rows in one product
constexpr int kDecodeCols = 512;
constexpr int kDecodeSize = kDecodeCols * kTileRows;
struct Decode {
  const uint8_t* weights;  // the first row's first block, any alignment
  const uint8_t* next;     // what this thread decodes next, for the prefetcher; may be null
  int64_t row_bytes;       // from one row's block to the next's
  int64_t rows;            // at most kTileRows
  int64_t cols;            // a multiple of the type's block size, at most kDecodeCols
  uint16_t* out;           // [kDecodeSize], 64-byte aligned
};

struct TileProduct;

// One (tier, quant) pair. A null member falls to the parent tier.
struct Kernel {
  void (*multiply)(const Multiply& call) = nullptr;
  void (*decode)(const Decode& call) = nullptr;  // integer types only
  void (*dequantise)(const uint8_t* blocks, int64_t n,
                     float* out) = nullptr;  // n weights, a multiple of the block size
  // Both at once, of kTileRows rows and kDecodeCols columns each; tiers without tiles have none.
  void (*multiply_and_decode)(const TileProduct& product, const Decode& next) = nullptr;
};

// Products of bfloat16 tiles: 16 tokens are a panel, pairs of columns in the order
// [columns / 2][16 tokens][2], zero beyond the tokens and columns there are.
constexpr int kPanelTokens = 16;

// sums[i][p][r][t] (+)= sum over k of rows[16 i + r][k] * panel p's token t, for two tiles i of 16
// rows and each of `num_panels` panels. Products are exact, sums are float32 in a fixed order.
struct TileProduct {
  const uint16_t* rows;  // decoded
  const uint16_t* panels;
  int64_t panel_stride;  // from one panel to the next
  int64_t cols;          // a multiple of kTileCols, at most kDecodeCols
  int64_t num_panels;
  float* sums;      // [2, num_panels, 16, 16], 64-byte aligned
  bool accumulate;  // false: what sums held is lost
};

struct TileKernel {
  // Around all use on a thread: the processor's tile state.
  void (*open)();
  void (*close)();
  // One panel of x[tokens] of `cols` values each, tokens <= 16.
  void (*pack)(const float* const* x, int64_t tokens, int64_t cols, uint16_t* panel);
  // The same from sums [rows / 16, num_panels, 16, 16], which hold the columns of the new panels.
  // rows: a multiple of kTileCols. panels: where the first of these columns lies.
  void (*pack_sums)(const float* sums, int64_t rows, int64_t num_panels, uint16_t* panels,
                    int64_t panel_stride);
  void (*multiply)(const TileProduct& call);
  // y[t][r] += weights[t] * the sums of row r and panel token t, r < rows, t < tokens <= 16.
  // sums: one panel's of the first 16 rows; the next 16 rows' lie sums_stride further.
  void (*add)(const float* sums, int64_t sums_stride, int64_t rows, int64_t tokens,
              const float* weights, float* const* y);
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
