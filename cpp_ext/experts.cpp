#include "hk2/experts.h"

#include <algorithm>
#include <cstring>

#include "hk2/activations.h"

namespace hk2 {
namespace {

constexpr int64_t kBlock = kActivationBlock;  // rows of the middle are quantised in such blocks
constexpr int64_t kMaxRows = 128;    // rows in a task: kernels for many tokens like long runs
constexpr int64_t kOutRows = 64;     // the fewest in a task of down
constexpr int64_t kTokenBlock = 64;  // tokens whose partial results a worker holds in its cache
constexpr int64_t kFewTokens = 4;    // up to here tasks take equally long: split them beforehand

// The tokens of one expert are slots [begin, end) of the sorted order.
struct ExpertGroup {
  int64_t expert, begin, end;
};

class MoeRegion {
 public:
  MoeRegion(ThreadPool::Lease& lease, const KernelTable& kernels, const MoeCall& call)
      : lease_(lease),
        kernels_(kernels),
        call_(call),
        hidden_(call.down.rows),
        width_(call.gate.rows),
        x_(lease.arena(), call.tokens, hidden_, reads_codes(call.gate) || reads_codes(call.up),
           reads_values(call.gate) || reads_values(call.up), call.x),
        slots_(sort_by_expert()),
        mid_(lease.arena(), slots_, width_, reads_codes(call.down), reads_values(call.down),
             nullptr),
        mid_rows_(few_tokens()
                      ? kBlock
                      : task_size(num_groups_ * width_, lease.workers(), kBlock, kMaxRows)),
        out_rows_(few_tokens() ? kOutRows
                               : task_size(hidden_, lease.workers(), kOutRows, kMaxRows)),
        mid_tasks_((width_ + mid_rows_ - 1) / mid_rows_),
        scratch_(lease.arena().take<float>(lease.workers() * kScratch)) {}

  void run() {
    lease_.run([this](int worker) {
      quantise_share(x_, kernels_.activations(), call_.x, worker, lease_.workers());
      lease_.barrier();
      for_each_task(num_groups_ * mid_tasks_, worker, mid_counter_,
                    [&](int64_t task, int64_t next) { gate_up(task, next, worker); });
      lease_.barrier();
      for_each_task((hidden_ + out_rows_ - 1) / out_rows_, worker, out_counter_,
                    [&](int64_t task, int64_t next) { down(task, next, worker); });
    });
  }

 private:
  static constexpr int64_t kScratch = 2 * kTokenBlock * kMaxRows;  // per worker

  bool few_tokens() const { return call_.tokens <= kFewTokens; }
  float* scratch(int worker) { return scratch_ + worker * kScratch; }

  // Counting sort of (token, k) by expert; tokens stay in order. Returns the number of slots.
  int64_t sort_by_expert() {
    Arena& arena = lease_.arena();
    const int64_t experts = call_.gate.stack, pairs = call_.tokens * call_.top_k;
    int64_t* ends = arena.take<int64_t>(experts + 1);
    std::fill_n(ends, experts + 1, int64_t{0});
    for (int64_t i = 0; i < pairs; ++i)
      if (call_.expert_ids[i] >= 0) ++ends[call_.expert_ids[i] + 1];
    groups_ = arena.take<ExpertGroup>(experts);
    for (int64_t e = 0; e < experts; ++e) {
      if (ends[e + 1]) groups_[num_groups_++] = {e, ends[e], ends[e] + ends[e + 1]};
      ends[e + 1] += ends[e];
    }
    const int64_t slots = ends[experts];
    slot_x_ = arena.take<ActivationRow>(slots);
    slot_token_ = arena.take<int64_t>(slots);
    slot_weight_ = arena.take<float>(slots);
    for (int64_t i = 0; i < pairs; ++i) {
      if (call_.expert_ids[i] < 0) continue;
      const int64_t slot = ends[call_.expert_ids[i]]++, token = i / call_.top_k;
      slot_x_[slot] = x_.row(token);
      slot_token_[slot] = token;
      slot_weight_[slot] = call_.weights[i];
    }
    return slots;
  }

  // body(task, the task this worker does next or -1 if unknown)
  template <class Body>
  void for_each_task(int64_t total, int worker, TaskCounter& counter, const Body& body) {
    if (few_tokens()) {
      const Share share(total, worker, lease_.workers());
      for (int64_t task = share.begin; task < share.end; ++task)
        body(task, task + 1 < share.end ? task + 1 : -1);
    } else {
      for (int64_t task = counter.take(); task < total; task = counter.take()) body(task, -1);
    }
  }

  const uint8_t* mid_weights(const Matrix& matrix, int64_t task) const {
    if (task < 0) return nullptr;
    return matrix.row(groups_[task / mid_tasks_].expert, task % mid_tasks_ * mid_rows_);
  }

  // mid[slot][rows] = silu(gate x) * up x for one expert's tokens and a run of rows, quantised
  // while it is in the cache.
  void gate_up(int64_t task, int64_t next, int worker) {
    const ExpertGroup& group = groups_[task / mid_tasks_];
    const int64_t first = task % mid_tasks_ * mid_rows_;
    const int64_t rows = std::min(mid_rows_, width_ - first);
    float* gate = scratch(worker);
    float* up = gate + kTokenBlock * kMaxRows;
    Multiply product;
    product.rows = rows;
    product.cols = hidden_;
    product.y_stride = kMaxRows;
    for (int64_t begin = group.begin; begin < group.end; begin += kTokenBlock) {
      product.x = slot_x_ + begin;
      product.tokens = std::min(kTokenBlock, group.end - begin);
      product.weights = mid_weights(call_.gate, task);
      product.next = mid_weights(call_.up, task);
      product.row_bytes = call_.gate.row_bytes();
      product.y = gate;
      kernels_[*call_.gate.quant].multiply(product);
      product.weights = mid_weights(call_.up, task);
      product.next = mid_weights(call_.gate, next);
      product.row_bytes = call_.up.row_bytes();
      product.y = up;
      kernels_[*call_.up.quant].multiply(product);
      for (int64_t t = 0; t < product.tokens; ++t) {
        float* mid = gate + t * kMaxRows;
        kernels_.activations().silu_multiply(mid, up + t * kMaxRows, rows);
        if (reads_codes(call_.down)) {
          mid_.quantise(kernels_.activations(), begin + t, first / kBlock, (first + rows) / kBlock,
                        mid);
        } else {
          std::copy_n(mid, rows, mid_.values(begin + t) + first);
        }
      }
    }
  }

  // y[:, rows] = sum over the experts. One task owns these rows of y, so nothing is shared and the
  // order is fixed.
  void down(int64_t task, int64_t next, int worker) {
    const int64_t first = task * out_rows_, rows = std::min(out_rows_, hidden_ - first);
    for (int64_t t = 0; t < call_.tokens; ++t)
      std::fill_n(call_.y + t * hidden_ + first, rows, 0.0f);
    Multiply product;
    product.rows = rows;
    product.cols = width_;
    product.row_bytes = call_.down.row_bytes();
    product.y = scratch(worker);
    product.y_stride = kMaxRows;
    for (int64_t g = 0; g < num_groups_; ++g) {
      const ExpertGroup& group = groups_[g];
      product.weights = call_.down.row(group.expert, first);
      product.next = g + 1 < num_groups_ ? call_.down.row(groups_[g + 1].expert, first)
                     : next >= 0         ? call_.down.row(groups_[0].expert, next * out_rows_)
                                         : nullptr;
      for (int64_t begin = group.begin; begin < group.end; begin += kTokenBlock) {
        product.x = mid_.rows() + begin;
        product.tokens = std::min(kTokenBlock, group.end - begin);
        kernels_[*call_.down.quant].multiply(product);
        for (int64_t t = 0; t < product.tokens; ++t) {
          const float weight = slot_weight_[begin + t];
          const float* part = product.y + t * kMaxRows;
          float* y = call_.y + slot_token_[begin + t] * hidden_ + first;
          for (int64_t r = 0; r < rows; ++r) y[r] += weight * part[r];
        }
      }
    }
  }

  ThreadPool::Lease& lease_;
  const KernelTable& kernels_;
  const MoeCall& call_;
  const int64_t hidden_, width_;
  Activations x_;
  ExpertGroup* groups_ = nullptr;
  int64_t num_groups_ = 0;
  ActivationRow* slot_x_ = nullptr;  // [slots] the token's activations
  int64_t* slot_token_ = nullptr;    // [slots]
  float* slot_weight_ = nullptr;     // [slots]
  const int64_t slots_;
  Activations mid_;                    // [slots, F]
  const int64_t mid_rows_, out_rows_;  // rows in a task
  const int64_t mid_tasks_;            // per expert
  float* scratch_;                     // [workers, 2, kTokenBlock, kMaxRows]
  TaskCounter mid_counter_, out_counter_;
};

}  // namespace

void moe(ThreadPool& pool, const KernelTable& kernels, const MoeCall& call) {
  if (call.tokens == 0) return;
  ThreadPool::Lease lease(pool);
  MoeRegion(lease, kernels, call).run();
}

}  // namespace hk2
