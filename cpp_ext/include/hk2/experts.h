// The mixture of experts of one layer: y = sum over a token's experts of weight * down(silu(gate x)
// * up x).
#pragma once

#include "hk2/kernel_table.h"
#include "hk2/thread_pool.h"

namespace hk2 {

constexpr int64_t kPackedBytes = int64_t{512} << 20;

struct MoeCall {
  Matrix gate, up, down;  // [E, F, H], [E, F, H], [E, H, F]; each of its own quant type
  const float* x;         // [tokens, H]
  const int32_t*
      expert_ids;        // [tokens, top_k], each -1 (skipped) or below E: checked by the caller
  const float* weights;  // [tokens, top_k]
  float* y;              // [tokens, H]
  int64_t tokens, top_k;
  bool add = false;                     // to what y holds; else that is overwritten
  int64_t packed_bytes = kPackedBytes;  // for tokens packed at a time; one expert's always are
};

// One parallel region: quantise x; a barrier; gate, up and SiLU; down, which waits for each
// expert's rows and no others. An expert's weights are read once for all its tokens. An expert of
// many tokens goes through bfloat16 tiles where the tier has them (tile_product.h); its tokens are
// packed first, for as many experts at a time as packed_bytes allows. Per token the experts are
// added in ascending order, so the result does not depend on the number of threads, bit for bit;
// nor a token's on the other tokens, while no expert has more than kSameBits of them. A dense MLP
// is the case E = 1.
void moe(ThreadPool& pool, const KernelTable& kernels, const MoeCall& call);

// The rows of every expert's matrix that workers of a NUMA node compute first: all nodes' together
// are all rows, in order and in multiples of 32 but for the last.
struct NodeRows {
  int64_t begin, end;
  NodeRows(int64_t rows, int node, int nodes);
};

// Touches a stack of `rows` x row_bytes that was not written to yet, each page by a worker of the
// node whose rows lie there, so that the system places it there. The contents are not changed.
void first_touch(ThreadPool& pool, uint8_t* data, int64_t stack, int64_t rows, int64_t row_bytes);

}  // namespace hk2
