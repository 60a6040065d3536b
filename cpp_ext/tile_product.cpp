#include "hk2/tile_product.h"

#include <algorithm>

namespace hk2 {

// A block of 32 rows and 512 columns is decoded into L1 and meets all panels, which pass from L2;
// sums wait in L2 from one run of columns to the next.
void multiply_panels(const KernelTable& kernels, const Matrix& matrix, const PanelProduct& call,
                     uint16_t* decoded) {
  const QuantInfo& quant = *matrix.quant;
  Decode block;
  block.row_bytes = matrix.row_bytes();
  block.out = decoded;
  TileProduct product;
  product.rows = decoded;
  product.panel_stride = panel_size(matrix.cols);
  product.num_panels = call.num_panels;
  for (int64_t k = 0; k < matrix.cols; k += kDecodeStride) {
    block.cols = product.cols = std::min<int64_t>(kDecodeStride, matrix.cols - k);
    product.panels = call.panels + panel_size(k);
    product.accumulate = k > 0;
    const int64_t run_bytes = block.cols / quant.block_size * quant.block_bytes;
    const uint8_t* run = call.weights + k / quant.block_size * quant.block_bytes;
    const uint8_t* next = k + kDecodeStride < matrix.cols ? run + run_bytes : call.next;
    for (int64_t r = 0; r < call.rows; r += kTileRows) {
      block.rows = std::min<int64_t>(kTileRows, call.rows - r);
      block.weights = run + r * block.row_bytes;
      block.next = next ? next + r * block.row_bytes : nullptr;
      kernels[quant].decode(block);
      std::fill(decoded + block.rows * kDecodeStride, decoded + kTileRows * kDecodeStride,
                uint16_t{0});
      product.sums = call.sums + r * call.num_panels * kPanelTokens;
      kernels.tiles()->multiply(product);
    }
  }
}

}  // namespace hk2
