#include "hk2/experts.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "hk2/activations.h"
#include "hk2/tile_product.h"

namespace hk2 {
namespace {

constexpr int64_t kBlock = kActivationBlock;  // rows of the middle are quantised in such blocks
constexpr int64_t kMaxRows = 128;  // rows in a task: kernels for many tokens like long runs
constexpr int64_t kOutRows = 64;   // the fewest in a task of down
// Tokens whose partial results a worker holds in its cache.
constexpr int64_t kTokenBlock = ProductRows::kTokens;

// Shares of a block's sum of squares from which its largest element is an outlier. silu(g) * u has
// long tails by itself: only a lone peak counts there.
constexpr float kOutlierOfX = 0.5f, kOutlierOfMid = 0.93f;

constexpr int64_t kTiledOutRows = 512;  // the most in a task of down through tiles

// The tokens of one expert are slots [begin, end) of the sorted order.
struct ExpertGroup {
  int64_t expert, begin, end;
  int64_t panel;  // the first of its panels in a round's; -1: its tokens are not packed
  std::atomic<int64_t> missing;  // tasks of gate and up that are not done yet

  int64_t tokens() const { return end - begin; }
  bool tiled() const { return panel >= 0; }
};

// Groups [begin, end), whose panels fit the scratch memory together.
struct Round {
  int64_t begin, end, panels;
  TaskCounter *gate_up, *down;  // [nodes]
};

// A NUMA node's part of the tasks: some rows of every expert.
struct NodeTasks {
  NodeRows mid, out;
  int64_t mid_tasks, out_tasks;  // mid: per expert
  int64_t* out_begins;           // [out_tasks + 1] the first row of each, and the end
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
           reads_values(call.gate) || reads_values(call.up), call.x, kOutlierOfX),
        slots_(sort_by_expert()),
        mid_(lease.arena(), slots_, width_, reads_codes(call.down), reads_values(call.down),
             nullptr, kOutlierOfMid),
        mid_rows_(task_size(num_groups_ * width_, lease.workers(), kBlock, kMaxRows)) {
    plan_rounds();
    list_few_tokens();
    share_among_nodes();
    scratch_size_ = max_panels_ ? kTiledScratch : kScratch;
    scratch_ = lease.arena().take<float>(lease.workers() * scratch_size_);
    decoded_ = lease.arena().take<DecodedBlocks>(lease.workers());
    for (int worker = 0; worker < lease.workers() && max_panels_; ++worker)
      new (decoded_ + worker)
          DecodedBlocks(reinterpret_cast<uint16_t*>(scratch(worker) + kTiledSums));
    x_panels_ = lease.arena().take<uint16_t>(max_panels_ * panel_size(hidden_));
    mid_panels_ = lease.arena().take<uint16_t>(max_panels_ * panel_size(width_));
  }

  void run() {
    lease_.run([this](int worker) {
      if (max_panels_) kernels_.tiles()->open();
      quantise_share(x_, kernels_.activations(), call_.x, few_tokens_, num_few_tokens_, worker,
                     lease_.workers());
      for (int64_t r = 0; r < num_rounds_; ++r) {
        Round& round = rounds_[r];
        if (r > 0) lease_.barrier();  // the last round's panels are still being read
        pack_share(round, worker);
        lease_.barrier();
        for_each_task(
            worker, round.gate_up,
            [&](const NodeTasks& node) { return (round.end - round.begin) * node.mid_tasks; },
            [&](const NodeTasks& node, int64_t task, int64_t next) {
              gate_up(round, node, task, next, worker);
            });
        for_each_task(
            worker, round.down, [](const NodeTasks& node) { return node.out_tasks; },
            [&](const NodeTasks& node, int64_t task, int64_t next) {
              down(round, node, task, next, worker);
            });
      }
      if (max_panels_) kernels_.tiles()->close();
    });
  }

 private:
  // Per worker, in floats: results of both gate and up, and of residuals; through tiles also
  // decoded blocks.
  static constexpr int64_t kScratch = 4 * kTokenBlock * kMaxRows;
  static constexpr int64_t kTiledSums = kMaxPanels * kPanelTokens * kTiledOutRows;
  static constexpr int64_t kTiledScratch = kTiledSums + kDecodeSize;
  static_assert(kTiledSums >= 2 * kMaxPanels * kPanelTokens * kMaxRows && kTiledSums >= kScratch,
                "sums of gate and of up");

  float* scratch(int worker) { return scratch_ + worker * scratch_size_; }

  // Rows in the next task of down. Through tiles long ones, so that few workers read an expert's
  // panels, and shorter and shorter, so that the slowest worker is not waited for: one core's tiles
  // may take three times as long as another's.
  int64_t out_rows(int64_t rows_left, bool mostly_tiled) const {
    if (!mostly_tiled) return task_size(hidden_, lease_.workers(), kOutRows, kMaxRows);
    const int64_t share = rows_left * lease_.nodes() / (2 * lease_.workers());
    return std::clamp(share / kTileRows * kTileRows, int64_t{kTileRows}, kTiledOutRows);
  }

  bool uses_tiles(const ExpertGroup& group) const {
    return hk2::uses_tiles(kernels_, call_.gate, group.tokens()) &&
           hk2::uses_tiles(kernels_, call_.up, group.tokens()) &&
           hk2::uses_tiles(kernels_, call_.down, group.tokens());
  }

  // Packed tokens of all experts could be many times x; so few experts at a time that they fit.
  void plan_rounds() {
    const int64_t bytes = (panel_size(hidden_) + panel_size(width_)) * 2;
    const int64_t capacity = call_.packed_bytes / bytes;
    rounds_ = lease_.arena().take<Round>(std::max<int64_t>(1, num_groups_));
    Round* round = new (rounds_) Round{0, 0, 0, counters(), counters()};
    for (int64_t g = 0; g < num_groups_; ++g) {
      const int64_t panels = uses_tiles(groups_[g]) ? num_panels(groups_[g].tokens()) : 0;
      if (round->panels && round->panels + panels > capacity)
        round = new (rounds_ + num_rounds_++) Round{g, g, 0, counters(), counters()};
      groups_[g].panel = panels ? round->panels : -1;
      round->panels += panels;
      round->end = g + 1;
      max_panels_ = std::max(max_panels_, round->panels);
    }
  }

  // Tokens of which an expert reads codes: of a long prompt with experts of many tokens, or with
  // most experts left to the GPU, few.
  void list_few_tokens() {
    bool* reads = lease_.arena().take<bool>(call_.tokens);
    std::fill_n(reads, call_.tokens, false);
    for (int64_t g = 0; g < num_groups_; ++g)
      for (int64_t s = groups_[g].begin; s < groups_[g].end && !groups_[g].tiled(); ++s)
        reads[slot_token_[s]] = true;
    few_tokens_ = lease_.arena().take<int64_t>(call_.tokens);
    for (int64_t t = 0; t < call_.tokens; ++t)
      if (reads[t]) few_tokens_[num_few_tokens_++] = t;
  }

  TaskCounter* counters() {
    TaskCounter* counters = lease_.arena().take<TaskCounter>(lease_.nodes());
    for (int node = 0; node < lease_.nodes(); ++node) new (counters + node) TaskCounter;
    return counters;
  }

  void share_among_nodes() {
    const bool mostly_tiled = slots_ >= num_groups_ * kTileTokens && max_panels_;
    nodes_ = lease_.arena().take<NodeTasks>(lease_.nodes());
    int64_t mid_tasks = 0;
    for (int n = 0; n < lease_.nodes(); ++n) {
      const NodeRows mid(width_, n, lease_.nodes()), out(hidden_, n, lease_.nodes());
      NodeTasks& node = *new (nodes_ + n) NodeTasks{
          mid, out, (mid.end - mid.begin + mid_rows_ - 1) / mid_rows_, 0,
          lease_.arena().take<int64_t>((out.end - out.begin) / kTileRows + 2)};
      for (int64_t row = out.begin; row < out.end; row += out_rows(out.end - row, mostly_tiled))
        node.out_begins[node.out_tasks++] = row;
      node.out_begins[node.out_tasks] = out.end;
      mid_tasks += node.mid_tasks;
    }
    for (int64_t g = 0; g < num_groups_; ++g) groups_[g].missing = mid_tasks;
  }

  void pack_share(const Round& round, int worker) {
    const Share share(round.panels, worker, lease_.workers());
    for (int64_t g = round.begin; g < round.end; ++g) {
      const ExpertGroup& group = groups_[g];
      if (!group.tiled()) continue;
      for (int64_t p = 0; p < num_panels(group.tokens()); ++p) {
        const int64_t panel = group.panel + p, begin = group.begin + p * kPanelTokens;
        if (panel < share.begin || panel >= share.end) continue;
        const int64_t tokens = std::min<int64_t>(kPanelTokens, group.end - begin);
        const float* x[kPanelTokens];
        for (int64_t t = 0; t < tokens; ++t) x[t] = call_.x + slot_token_[begin + t] * hidden_;
        kernels_.tiles()->pack(x, tokens, hidden_, x_panels_ + panel * panel_size(hidden_));
      }
    }
  }

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
      if (ends[e + 1])
        new (groups_ + num_groups_++) ExpertGroup{e, ends[e], ends[e] + ends[e + 1], -1, {0}};
      ends[e + 1] += ends[e];
    }
    const int64_t slots = ends[experts];
    PoolCounters& counters = lease_.counters();
    counters.experts += static_cast<uint64_t>(slots);
    counters.skipped += static_cast<uint64_t>(pairs - slots);
    counters.weight_bytes += static_cast<uint64_t>(num_groups_) *
                             (call_.gate.bytes() + call_.up.bytes() + call_.down.bytes());
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

  // body(node, task, the task this worker does next or -1). Shared out one by one: cores of one
  // machine differ by up to 1.8x in what they read a second, and a fixed split waits for the
  // slowest. A worker takes its own node's tasks first, then what the others left.
  template <class Total, class Body>
  void for_each_task(int worker, TaskCounter* counters, const Total& total, const Body& body) {
    for (int i = 0; i < lease_.nodes(); ++i) {
      const int n = (lease_.node(worker) + i) % lease_.nodes();
      const int64_t end = total(nodes_[n]);
      for (int64_t task = counters[n].take(), next; task < end; task = next) {
        next = counters[n].take();
        body(nodes_[n], task, next < end ? next : -1);
      }
    }
  }

  int64_t mid_row(const NodeTasks& node, int64_t task) const {
    return node.mid.begin + task % node.mid_tasks * mid_rows_;
  }

  // mid[slot][rows] = silu(gate x) * up x for one expert's tokens and a run of rows, quantised
  // while it is in the cache.
  void gate_up(const Round& round, const NodeTasks& node, int64_t task, int64_t next, int worker) {
    ExpertGroup& group = groups_[round.begin + task / node.mid_tasks];
    const int64_t first = mid_row(node, task), rows = std::min(mid_rows_, node.mid.end - first);
    const uint8_t* later = next < 0
                               ? nullptr
                               : call_.gate.row(groups_[round.begin + next / node.mid_tasks].expert,
                                                mid_row(node, next));
    if (group.tiled()) {
      gate_up_tiled(group, first, rows, later, worker);
    } else {
      gate_up_few(group, first, rows, later, worker);
    }
    group.missing.fetch_sub(1, std::memory_order_release);
  }

  void gate_up_few(const ExpertGroup& group, int64_t first, int64_t rows, const uint8_t* next,
                   int worker) {
    float* gate = scratch(worker);
    float* up = gate + 2 * kTokenBlock * kMaxRows;
    const uint8_t* up_weights = call_.up.row(group.expert, first);
    for (int64_t begin = group.begin; begin < group.end; begin += kTokenBlock) {
      const int64_t tokens = std::min(kTokenBlock, group.end - begin);
      const auto residual = [&](int64_t t) { return x_.residual(slot_token_[begin + t]); };
      multiply_few(call_.gate, call_.gate.row(group.expert, first), up_weights, rows,
                   slot_x_ + begin, tokens, residual, gate);
      multiply_few(call_.up, up_weights, next, rows, slot_x_ + begin, tokens, residual, up);
      for (int64_t t = 0; t < tokens; ++t) {
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

  // y[t * kMaxRows + r] for a run of rows and up to kTokenBlock tokens; y has room for twice as
  // many.
  template <class Residual>
  void multiply_few(const Matrix& matrix, const uint8_t* weights, const uint8_t* next, int64_t rows,
                    const ActivationRow* x, int64_t tokens, const Residual& residual, float* y) {
    const ProductRows all(x, reads_codes(matrix) ? tokens : 0, residual);
    Multiply product;
    product.weights = weights;
    product.next = next;
    product.row_bytes = matrix.row_bytes();
    product.rows = rows;
    product.cols = matrix.cols;
    product.x = all.rows();
    product.tokens = reads_codes(matrix) ? all.count() : tokens;
    product.y = y;
    product.y_stride = kMaxRows;
    kernels_[*matrix.quant].multiply(product);
    all.add_residuals(y, kMaxRows, rows);
  }

  void gate_up_tiled(const ExpertGroup& group, int64_t first, int64_t rows, const uint8_t* next,
                     int worker) {
    const uint8_t* gate_weights = call_.gate.row(group.expert, first);
    const uint8_t* up_weights = call_.up.row(group.expert, first);
    const bool alike = call_.gate.quant == call_.up.quant;
    float* gate = scratch(worker);
    float* up = gate + kMaxPanels * kPanelTokens * kMaxRows;
    const int64_t total = num_panels(group.tokens());
    PanelProduct product;
    product.rows = rows;
    for (int64_t p = 0; p < total; p += kMaxPanels) {
      product.num_panels = std::min(kMaxPanels, total - p);
      product.panels = x_panels_ + (group.panel + p) * panel_size(hidden_);
      product.weights = gate_weights;
      product.next = alike ? up_weights : nullptr;
      product.sums = gate;
      multiply_panels(kernels_, call_.gate, product, decoded_[worker]);
      product.weights = up_weights;
      product.next = !alike ? nullptr : p + kMaxPanels < total ? gate_weights : next;
      product.sums = up;
      multiply_panels(kernels_, call_.up, product, decoded_[worker]);
      kernels_.activations().silu_multiply(gate, up, rows * product.num_panels * kPanelTokens);
      uint16_t* mid = mid_panels_ + (group.panel + p) * panel_size(width_) + panel_size(first);
      kernels_.tiles()->pack_sums(gate, rows, product.num_panels, mid, panel_size(width_));
    }
  }

  // y[:, rows] (+)= sum over the experts. One task owns these rows of y, so nothing is shared and
  // the order is fixed.
  void down(const Round& round, const NodeTasks& node, int64_t task, int64_t next, int worker) {
    const int64_t first = node.out_begins[task], rows = node.out_begins[task + 1] - first;
    if (round.begin == 0 && !call_.add)
      for (int64_t t = 0; t < call_.tokens; ++t)
        std::fill_n(call_.y + t * hidden_ + first, rows, 0.0f);
    for (int64_t g = round.begin; g < round.end; ++g) {
      const ExpertGroup& group = groups_[g];
      // No barrier before: while the last experts' gate and up are under way, the first are ready.
      spin_until([&] { return group.missing.load(std::memory_order_acquire) == 0; });
      const uint8_t* later =
          g + 1 < round.end ? call_.down.row(groups_[g + 1].expert, first)
          : next >= 0       ? call_.down.row(groups_[round.begin].expert, node.out_begins[next])
                            : nullptr;
      if (group.tiled()) {
        down_tiled(group, first, rows, later, worker);
        continue;
      }
      for (int64_t r = 0; r < rows; r += kMaxRows)
        down_few(group, first + r, std::min(kMaxRows, rows - r),
                 r + kMaxRows < rows ? call_.down.row(group.expert, first + r + kMaxRows) : later,
                 worker);
    }
  }

  void down_few(const ExpertGroup& group, int64_t first, int64_t rows, const uint8_t* next,
                int worker) {
    float* parts = scratch(worker);
    for (int64_t begin = group.begin; begin < group.end; begin += kTokenBlock) {
      const int64_t tokens = std::min(kTokenBlock, group.end - begin);
      multiply_few(
          call_.down, call_.down.row(group.expert, first), next, rows, mid_.rows() + begin, tokens,
          [&](int64_t t) { return mid_.residual(begin + t); }, parts);
      for (int64_t t = 0; t < tokens; ++t) {
        const float weight = slot_weight_[begin + t];
        const float* part = parts + t * kMaxRows;
        float* y = call_.y + slot_token_[begin + t] * hidden_ + first;
        for (int64_t r = 0; r < rows; ++r) y[r] += weight * part[r];
      }
    }
  }

  void down_tiled(const ExpertGroup& group, int64_t first, int64_t rows, const uint8_t* next,
                  int worker) {
    const int64_t total = num_panels(group.tokens());
    PanelProduct product;
    product.weights = call_.down.row(group.expert, first);
    product.rows = rows;
    product.sums = scratch(worker);
    for (int64_t p = 0; p < total; p += kMaxPanels) {
      product.num_panels = std::min(kMaxPanels, total - p);
      product.next = p + kMaxPanels < total ? product.weights : next;
      product.panels = mid_panels_ + (group.panel + p) * panel_size(width_);
      multiply_panels(kernels_, call_.down, product, decoded_[worker]);
      for (int64_t i = 0; i < product.num_panels; ++i) {
        const int64_t begin = group.begin + (p + i) * kPanelTokens;
        const int64_t tokens = std::min<int64_t>(kPanelTokens, group.end - begin);
        float* y[kPanelTokens];
        for (int64_t t = 0; t < tokens; ++t)
          y[t] = call_.y + slot_token_[begin + t] * hidden_ + first;
        constexpr int64_t kTile = kPanelTokens * 16;
        kernels_.tiles()->add(product.sums + i * kTile, product.num_panels * kTile, rows, tokens,
                              slot_weight_ + begin, y);
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
  int64_t* few_tokens_ = nullptr;  // [num_few_tokens_] ascending
  int64_t num_few_tokens_ = 0;
  Activations mid_;         // [slots, F]
  const int64_t mid_rows_;  // in a task
  NodeTasks* nodes_ = nullptr;
  Round* rounds_ = nullptr;
  int64_t num_rounds_ = 1, max_panels_ = 0;
  uint16_t* x_panels_;    // [max_panels_, H / 2, 16, 2] a round's tokens, as many times as experts
  uint16_t* mid_panels_;  // [max_panels_, F / 2, 16, 2]
  float* scratch_;        // [workers, scratch_size_]
  DecodedBlocks* decoded_;  // [workers]
  int64_t scratch_size_;
};

constexpr int64_t kPage = 4096;

}  // namespace

NodeRows::NodeRows(int64_t rows, int node, int nodes)
    : begin(rows * node / nodes / kBlock * kBlock),
      end(node + 1 == nodes ? rows : rows * (node + 1) / nodes / kBlock * kBlock) {}

void first_touch(ThreadPool& pool, uint8_t* data, int64_t stack, int64_t rows, int64_t row_bytes) {
  ThreadPool::Lease lease(pool);
  TaskCounter* counters = lease.arena().take<TaskCounter>(lease.nodes());
  for (int node = 0; node < lease.nodes(); ++node) new (counters + node) TaskCounter;
  const auto on_first_node = [&](int worker) { return lease.node(worker) == lease.node(0); };
  int neighbours = 0;  // of the caller, which is not pinned: they do its part where there are any
  for (int worker = 1; worker < lease.workers(); ++worker) neighbours += on_first_node(worker);
  lease.run([&](int worker) {
    if (worker == 0 && neighbours > 0) return;
    const int node = lease.node(worker);
    const NodeRows share(rows, node, lease.nodes());
    for (int64_t s; (s = counters[node].take()) < stack;) {
      volatile uint8_t* first = data + (s * rows + share.begin) * row_bytes;
      for (int64_t i = 0; i < (share.end - share.begin) * row_bytes; i += kPage)
        first[i] = first[i];
    }
  });
}

void moe(ThreadPool& pool, const KernelTable& kernels, const MoeCall& call) {
  if (call.tokens == 0) return;
  ThreadPool::Lease lease(pool);
  MoeRegion(lease, kernels, call).run();
}

}  // namespace hk2
