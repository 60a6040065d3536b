// y = x W^T for one matrix or for a stack of them.
#pragma once

#include "hk2/kernel_table.h"
#include "hk2/thread_pool.h"

namespace hk2 {

// x [stack, tokens, cols] -> y [stack, tokens, rows], matrix s of the stack for x[s], in one
// parallel region. The result does not depend on the number of threads, bit for bit; nor a token's
// on the other tokens, while there are at most kSameBits of them.
void linear(ThreadPool& pool, const KernelTable& kernels, const Matrix& matrix, const float* x,
            float* y, int64_t tokens);

// Reads `num_bytes` of fresh memory `repeats` times with all workers; the best rate in GB/s (1e9
// bytes a second).
double read_bandwidth(ThreadPool& pool, int64_t num_bytes, int64_t repeats);

}  // namespace hk2
