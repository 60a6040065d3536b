#include "hk2/handoff.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

namespace hk2 {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSpins = 4096;  // between two looks at the clock: some tens of microseconds

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Handoff::Handoff(const HandoffMemory& memory, std::vector<LayerExperts> layers)
    : memory_(memory), layers_(std::move(layers)) {
  if (layers_.empty()) throw std::invalid_argument("layers: none, expected at least one");
  const LayerExperts& first = layers_.front();
  for (const LayerExperts& layer : layers_)
    for (const Matrix* matrix : {&layer.gate, &layer.up, &layer.down}) {
      const bool is_down = matrix == &layer.down;
      if (matrix->stack != first.gate.stack ||
          matrix->rows != (is_down ? first.gate.cols : first.gate.rows) ||
          matrix->cols != (is_down ? first.gate.rows : first.gate.cols))
        throw std::invalid_argument("layers: matrices of different shapes, expected the first's");
    }
}

void Handoff::serve(ThreadPool& pool, const KernelTable& kernels, uint32_t step, int64_t tokens,
                    double timeout_s, LayerTimes* times) try {
  for (int64_t layer = 0; layer < num_layers(); ++layer) {
    const auto waiting = Clock::now();
    if (!await(layer, step, timeout_s))
      throw HandoffError("the GPU did not publish layer " + std::to_string(layer) + " of " +
                         std::to_string(num_layers()) + " within " + std::to_string(timeout_s) +
                         " s; a kernel before it failed or another program holds the GPU");
    const auto computing = Clock::now();
    if (check_experts(layer, tokens)) {
      const LayerExperts& experts = layers_[layer];
      moe(pool, kernels,
          {experts.gate, experts.up, experts.down, memory_.x, memory_.expert_ids, memory_.weights,
           memory_.y, tokens, memory_.top_k});
    } else {
      pool.counters().skipped += static_cast<uint64_t>(tokens * memory_.top_k);
      std::fill_n(memory_.y, tokens * layers_[layer].gate.cols, 0.0f);
    }
    __atomic_store_n(memory_.answered + layer * kFlagStride, step, __ATOMIC_RELEASE);
    if (times)
      times[layer] = {std::chrono::duration<double>(computing - waiting).count(),
                      seconds_since(computing)};
  }
} catch (...) {
  release(step);
  throw;
}

void Handoff::release(uint32_t step) {
  for (int64_t layer = 0; layer < num_layers(); ++layer)
    __atomic_store_n(memory_.answered + layer * kFlagStride, step, __ATOMIC_RELEASE);
}

// False: not within timeout_s.
bool Handoff::await(int64_t layer, uint32_t step, double timeout_s) const {
  const uint32_t* flag = memory_.published + layer * kFlagStride;
  const auto start = Clock::now();
  for (int i = 1; __atomic_load_n(flag, __ATOMIC_ACQUIRE) != step; ++i) {
    pause_cpu();
    if (i % kSpins) continue;
    if (seconds_since(start) > timeout_s) return false;
    sched_yield();  // where threads outnumber cores, somebody else may be what we wait for
  }
  return true;
}

// True: the CPU has something to compute. Throws for an id that is no expert.
bool Handoff::check_experts(int64_t layer, int64_t tokens) const {
  bool any = false;
  for (int64_t i = 0; i < tokens * memory_.top_k; ++i) {
    const int32_t expert = memory_.expert_ids[i];
    if (expert < -1 || expert >= layers_[layer].gate.stack)
      throw HandoffError("layer " + std::to_string(layer) + " was published with expert " +
                         std::to_string(expert) + ", expected -1 or an expert below " +
                         std::to_string(layers_[layer].gate.stack));
    any |= expert >= 0;
  }
  return any;
}

}  // namespace hk2
