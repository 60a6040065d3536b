// Rows of a stored matrix times packed tokens through bfloat16 tiles: one worker's part.
#pragma once

#include "hk2/kernel_table.h"

namespace hk2 {

// From so many tokens on tiles are faster than the integer kernels, which take 16 tokens the same
// time as 9. More than kSameBits: tiles round differently.
constexpr int64_t kTileTokens = 9;
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
  const uint8_t* next;  // the first of 32 rows or more that this thread multiplies afterwards, of
                        // the same type and length; may be null
  int64_t rows;
  const uint16_t* panels;
  int64_t num_panels;
  float* sums;  // [rows up to a multiple of 32 / 16, num_panels, 16, 16], 64-byte aligned
};

// A thread's scratch: the block that is multiplied and the one that is decoded, best left in L1.
class DecodedBlocks {
 public:
  explicit DecodedBlocks(uint16_t* memory) : now_(memory), later_(memory + kDecodeSize) {}

 private:
  friend void multiply_panels(const KernelTable&, const Matrix&, const PanelProduct&,
                              DecodedBlocks&);
  uint16_t *now_, *later_;          // [kDecodeSize]
  const uint8_t* first_ = nullptr;  // the weights with which the block in now_ begins
};

// Between open() and close() of the tile kernel.
void multiply_panels(const KernelTable& kernels, const Matrix& matrix, const PanelProduct& call,
                     DecodedBlocks& decoded);

}  // namespace hk2
