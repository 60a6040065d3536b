#include "hk2/tile_product.h"

#include <algorithm>
#include <utility>

namespace hk2 {
namespace {

// The blocks of a product in the order in which they are multiplied: 32 rows and 512 columns each.
class Blocks {
 public:
  Blocks(const Matrix& matrix, const PanelProduct& call)
      : quant_(*matrix.quant), matrix_(matrix), call_(call) {}

  int64_t count() const {
    return (matrix_.cols + kDecodeCols - 1) / kDecodeCols *
           ((call_.rows + kTileRows - 1) / kTileRows);
  }

  // Block count() is the first of call.next.
  Decode decode(int64_t i, uint16_t* out) const {
    if (i == count()) {
      PanelProduct next = call_;
      next.weights = call_.next;
      return Blocks(matrix_, next).decode(0, out);
    }
    const int64_t r = row(i), k = column(i);
    Decode block;
    block.row_bytes = matrix_.row_bytes();
    block.rows = std::min<int64_t>(kTileRows, call_.rows - r);
    block.cols = std::min<int64_t>(kDecodeCols, matrix_.cols - k);
    const uint8_t* run = call_.weights + bytes(k);
    const uint8_t* next = k + kDecodeCols < matrix_.cols ? run + bytes(block.cols) : call_.next;
    block.weights = run + r * block.row_bytes;
    block.next = next ? next + r * block.row_bytes : nullptr;
    block.out = out;
    return block;
  }

  TileProduct product(int64_t i, const uint16_t* rows) const {
    const int64_t r = row(i), k = column(i);
    TileProduct product;
    product.rows = rows;
    product.panels = call_.panels + panel_size(k);
    product.panel_stride = panel_size(matrix_.cols);
    product.cols = std::min<int64_t>(kDecodeCols, matrix_.cols - k);
    product.num_panels = call_.num_panels;
    product.sums = call_.sums + r * call_.num_panels * kPanelTokens;
    product.accumulate = k > 0;
    return product;
  }

 private:
  int64_t runs() const { return (call_.rows + kTileRows - 1) / kTileRows; }
  int64_t row(int64_t i) const { return i % runs() * kTileRows; }
  int64_t column(int64_t i) const { return i / runs() * kDecodeCols; }
  int64_t bytes(int64_t k) const { return k / quant_.block_size * quant_.block_bytes; }

  const QuantInfo& quant_;
  const Matrix& matrix_;
  const PanelProduct& call_;
};

void decode(const Kernel& kernel, const Decode& block) {
  // Rows that are not there are zeros: their products may not be infinite.
  if (block.rows < kTileRows) std::fill_n(block.out, kDecodeSize, uint16_t{0});
  kernel.decode(block);
}

}  // namespace

// A block is decoded into L1 and meets all panels, which pass from L2; sums wait in L2 from one run
// of columns to the next. The next block is decoded meanwhile, where a kernel can; after the last
// the first of call.next.
void multiply_panels(const KernelTable& kernels, const Matrix& matrix, const PanelProduct& call,
                     DecodedBlocks& decoded) {
  const Kernel& kernel = kernels[*matrix.quant];
  const Blocks blocks(matrix, call);
  if (decoded.first_ != call.weights) decode(kernel, blocks.decode(0, decoded.now_));
  const int64_t count = blocks.count(), all = call.next ? count + 1 : count;
  for (int64_t i = 0; i < count; ++i, std::swap(decoded.now_, decoded.later_)) {
    const TileProduct product = blocks.product(i, decoded.now_);
    const bool last = i + 1 == all;
    const Decode next = last ? Decode() : blocks.decode(i + 1, decoded.later_);
    if (!last && kernel.multiply_and_decode && product.cols == kDecodeCols &&
        next.cols == kDecodeCols && next.rows == kTileRows) {
      kernel.multiply_and_decode(product, next);
    } else {
      kernels.tiles()->multiply(product);
      if (!last) decode(kernel, next);
    }
  }
  decoded.first_ = call.next;
}

}  // namespace hk2
