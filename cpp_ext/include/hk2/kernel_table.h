// Which kernel serves which quant type on a chosen tier: decided once, from kernels.inc.
#pragma once

#include <string>
#include <vector>

#include "hk2/isa.h"
#include "hk2/kernels.h"

namespace hk2 {

struct QuantInfo {
  int index;  // position in quant_types()
  const char* name;
  int64_t block_size;  // weights
  int64_t block_bytes;
  bool reads_codes;  // true: int8 activations; false: float32 activations
};

const std::vector<QuantInfo>& quant_types();
const QuantInfo& quant_by_name(
    const std::string& name);  // std::invalid_argument names the known ones

// The resolved choice for every type: the tier's own kernel or the nearest ancestor's.
class KernelTable {
 public:
  explicit KernelTable(const TierInfo& tier);

  const TierInfo& tier() const { return tier_; }
  const char* source(const QuantInfo& quant) const {
    return sources_[quant.index];
  }  // name of the tier that serves it
  const Kernel& operator[](const QuantInfo& quant) const { return kernels_[quant.index]; }
  const ActivationKernel& activations() const { return activations_; }
  const TileKernel* tiles() const { return tiles_; }  // null: this tier has no tiles

 private:
  TierInfo tier_;
  std::vector<Kernel> kernels_;
  std::vector<const char*> sources_;
  ActivationKernel activations_{};
  const TileKernel* tiles_ = nullptr;
};

// `stack` matrices of stored blocks, one behind the other, row-major. Does not own the bytes.
struct Matrix {
  const uint8_t* data;
  const QuantInfo* quant;
  int64_t stack, rows, cols;

  int64_t row_bytes() const { return cols / quant->block_size * quant->block_bytes; }
  uint64_t bytes() const { return static_cast<uint64_t>(rows * row_bytes()); }  // of one matrix
  const uint8_t* row(int64_t s, int64_t r) const { return data + (s * rows + r) * row_bytes(); }
};

}  // namespace hk2
