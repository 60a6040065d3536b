// The routed experts of a whole decode step, computed while a GPU runs that step without the host.
//
// The GPU's step is captured once and knows nothing of threads. At every mixture of experts it
// publishes its inputs in host memory that both sides map, then a flag, and a later kernel of the
// step waits for the answer's flag. A flag is one word that one side writes and that holds the
// number of the last step that reached it, so nothing is ever reset and late writes say nothing
// new.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "hk2/experts.h"

namespace hk2 {

constexpr int64_t kFlagStride = 16;  // words: every flag has a cache line to itself

// Mapped by both sides; owned by the caller. Inputs and outputs serve all layers, one after
// another.
struct HandoffMemory {
  const uint32_t* published;  // [layers, kFlagStride], written by the GPU
  uint32_t* answered;         // [layers, kFlagStride], written here
  const float* x;             // [max_tokens, H]
  const int32_t* expert_ids;  // [max_tokens, top_k], -1 skips
  const float* weights;       // [max_tokens, top_k]
  float* y;                   // [max_tokens, H]
  int64_t top_k;
};

struct LayerExperts {
  Matrix gate, up, down;  // as in MoeCall
};

struct LayerTimes {
  double waited_s, computed_s;  // until the layer was published; from then to its answer
};

class HandoffError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Handoff {
 public:
  // All layers have the same H, F and E; std::invalid_argument where not, or where there is none.
  Handoff(const HandoffMemory& memory, std::vector<LayerExperts> layers);

  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }

  // Answers every layer of step `step` in turn, the caller being worker 0 of the pool; times, if
  // not null, receives num_layers(). A layer without routed experts on the CPU (all ids -1) costs
  // no parallel region. Throws HandoffError when a layer was not published within timeout_s of the
  // one before, or its expert ids are out of range, and then releases the GPU: the step's results
  // are worthless, but it ends.
  void serve(ThreadPool& pool, const KernelTable& kernels, uint32_t step, int64_t tokens,
             double timeout_s, LayerTimes* times);

  // Answers every layer of `step` with whatever is in y.
  void release(uint32_t step);

 private:
  bool await(int64_t layer, uint32_t step, double timeout_s) const;
  bool check_experts(int64_t layer, int64_t tokens) const;

  HandoffMemory memory_;
  std::vector<LayerExperts> layers_;
};

}  // namespace hk2
