#include <stdexcept>

#include "hk2/kernel_table.h"

#define Q(name, block_size, block_bytes, reads_codes)
#define A(tier, folder) extern "C" const hk2::ActivationKernel* hk2_##folder##_activations();
#define K(tier, folder, quant) extern "C" const hk2::Kernel* hk2_##folder##_##quant();
#define T(tier, folder) extern "C" const hk2::TileKernel* hk2_##folder##_tiles();
#include "kernels.inc"
#undef Q
#undef A
#undef K
#undef T

namespace hk2 {
namespace {

struct Entry {
  Tier tier;
  const char* quant;  // null: the tier's activation or tile kernel
  const Kernel* kernel;
  const ActivationKernel* activations;
  const TileKernel* tiles;
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> list = {
#define Q(name, block_size, block_bytes, reads_codes)
#define A(tier, folder) {Tier::tier, nullptr, nullptr, hk2_##folder##_activations(), nullptr},
#define K(tier, folder, quant) {Tier::tier, #quant, hk2_##folder##_##quant(), nullptr, nullptr},
#define T(tier, folder) {Tier::tier, nullptr, nullptr, nullptr, hk2_##folder##_tiles()},
#include "kernels.inc"
#undef Q
#undef A
#undef K
#undef T
  };
  return list;
}

}  // namespace

const std::vector<QuantInfo>& quant_types() {
  static const std::vector<QuantInfo> types = [] {
    std::vector<QuantInfo> list;
#define Q(name, block_size, block_bytes, reads_codes) \
  list.push_back({static_cast<int>(list.size()), #name, block_size, block_bytes, reads_codes});
#define A(tier, folder)
#define K(tier, folder, quant)
#define T(tier, folder)
#include "kernels.inc"
#undef Q
#undef A
#undef K
#undef T
    return list;
  }();
  return types;
}

const QuantInfo& quant_by_name(const std::string& name) {
  std::string names;
  for (const QuantInfo& info : quant_types()) {
    if (name == info.name) return info;
    names += (names.empty() ? "" : ", ") + std::string(info.name);
  }
  throw std::invalid_argument("quant: no kernel for '" + name + "', expected one of " + names);
}

KernelTable::KernelTable(const TierInfo& tier) : tier_(tier) {
  kernels_.resize(quant_types().size(), Kernel{});
  sources_.resize(quant_types().size(), nullptr);
  // From the chosen tier up to the root: the first that has a member wins.
  for (TierInfo level = tier;; level = tier_info(level.parent)) {
    for (const Entry& entry : entries()) {
      if (entry.tier != level.tier) continue;
      if (entry.activations) {
        if (!activations_.quantise) activations_.quantise = entry.activations->quantise;
        if (!activations_.silu_multiply)
          activations_.silu_multiply = entry.activations->silu_multiply;
        continue;
      }
      if (entry.tiles) {
        if (!tiles_) tiles_ = entry.tiles;
        continue;
      }
      const int q = quant_by_name(entry.quant).index;
      if (!kernels_[q].multiply && entry.kernel->multiply) {
        kernels_[q].multiply = entry.kernel->multiply;
        sources_[q] = level.name;
      }
      if (!kernels_[q].multiply_and_decode)
        kernels_[q].multiply_and_decode = entry.kernel->multiply_and_decode;
      if (!kernels_[q].decode) kernels_[q].decode = entry.kernel->decode;
      if (!kernels_[q].dequantise) kernels_[q].dequantise = entry.kernel->dequantise;
    }
    if (level.parent == level.tier) break;
  }
}

}  // namespace hk2
