// Rows of a stored matrix times packed tokens through bfloat16 tiles: one worker's part.
#pragma once

#include "hk2/kernel_table.h"

namespace hk2 {

// From so many tokens on tiles are faster than the integer kernels. More than kSameBits: tiles
// round differently.
constexpr int64_t kTileTokens = 16;
constexpr int64_t kMaxPanels = 16;  // in one product, so that its sums stay in L2

inline int64_t num_panels(int64_t tokens) { return (tokens + kPanelTokens - 1) / kPanelTokens; }
inline int64_t panel_size(int64_t cols) { return cols * kPanelTokens; }

// Whether `tokens` that share one matrix go through tiles. Float types keep their precision.
inline bool uses_tiles(const KernelTable& kernels, const Matrix& matrix, int64_t tokens) {
  return kernels.tiles() && matrix.quant->reads_codes && tokens >= kTileTokens;
}

// sums[r / 16][p][r % 16][t] = row r times token t of panel p.
struct PanelProduct {
  const uint8_t* weights;  // the first row
  const uint8_t* next;     // the first row this thread reads afterwards; may be null
  int64_t rows;
  const uint16_t* panels;
  int64_t num_panels;
  float* sums;  // [rows up to a multiple of 32 / 16, num_panels, 16, 16], 64-byte aligned
};

// `decoded`: scratch for kTileRows * kDecodeStride values, 64-byte aligned, best left to one thread
// so that it stays in L1. Between open() and close() of the tile kernel.
void multiply_panels(const KernelTable& kernels, const Matrix& matrix, const PanelProduct& call,
                     uint16_t* decoded);

}  // namespace hk2
