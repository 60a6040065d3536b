"""The CPU kernels where no compiler was there at install: the same interface, compiled by numba at
first use.

A row is decoded to float32 and multiplied with every token's activations while it is in cache.
Types without a decoder here are dequantised by torch, a few rows at a time. Activations stay
float32, so results are a little more accurate than the C++ kernels' and much slower. Knows nothing
of modules or of the model.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F

from hybrid_k2.backends.kernel_counters import KernelCounters
from hybrid_k2.quant.stored import StoredTensor

_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)  # f16 bits -> value
_TORCH_ROWS = 64


@dataclass(frozen=True, slots=True)
class NumbaMatrix:
    """A stack of matrices in their stored blocks: row r of matrix s is `rows[s, r]`."""

    stored: StoredTensor
    rows: np.ndarray  # [stack, rows, row_bytes] uint8
    num_cols: int

    @property
    def num_rows(self) -> int:
        return self.rows.shape[1]


class NumbaKernels:
    """`SLOWDOWN`: one token's experts took 6 (Q8_0) to 30 times (Q4_0) as long as on the AVX-512
    tier; 2 cores of a Sapphire Rapids, shared, 2026-11-22.
    """

    SLOWDOWN = 20

    def __init__(self, num_threads: int) -> None:
        numba.set_num_threads(min(num_threads, numba.config.NUMBA_NUM_THREADS))
        self._busy_s, self._weight_bytes, self._experts, self._skipped = 0.0, 0, 0, 0

    def place(self, data: np.ndarray, stack: int, rows: int) -> None:
        """Nothing: numba's threads are not pinned."""

    def matrix(self, stored: StoredTensor) -> NumbaMatrix:
        stack = stored.shape[0] if len(stored.shape) == 3 else 1
        return NumbaMatrix(
            stored, stored.data.reshape(stack, stored.shape[-2], -1), stored.shape[-1]
        )

    def linear(self, matrix: NumbaMatrix, x: torch.Tensor) -> torch.Tensor:
        return self._product(matrix, 0, x)

    def batched_linear(self, matrix: NumbaMatrix, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._product(matrix, s, x[s]) for s in range(x.shape[0])])

    def moe(
        self,
        gate: NumbaMatrix,
        up: NumbaMatrix,
        down: NumbaMatrix,
        x: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor | None = None,
        add: bool = False,
    ) -> torch.Tensor:
        y = torch.zeros_like(x) if out is None else out
        if not add:
            y.zero_()
        self._skipped += int((expert_ids < 0).sum())
        for expert_id in expert_ids.unique().tolist():
            if expert_id < 0:
                continue
            tokens, choice = (expert_ids == expert_id).nonzero(as_tuple=True)
            self._experts += len(tokens)
            routed = x[tokens]
            mid = F.silu(self._product(gate, expert_id, routed)) * self._product(
                up, expert_id, routed
            )
            routed = self._product(down, expert_id, mid) * weights[tokens, choice, None]
            y.index_add_(0, tokens, routed)
        return y

    def counters(self) -> KernelCounters:
        return KernelCounters(self._busy_s, self._weight_bytes, self._experts, self._skipped)

    def _product(self, matrix: NumbaMatrix, s: int, x: torch.Tensor) -> torch.Tensor:
        """x [T, cols] times matrix s of the stack, transposed: [T, rows]."""
        started_s = time.perf_counter()
        decoded = matrix.stored.quant.name in _DECODERS
        y = (_numba_product if decoded else _torch_product)(matrix, s, x)
        self._busy_s += time.perf_counter() - started_s
        self._weight_bytes += matrix.rows[s].nbytes
        return y


def _numba_product(matrix: NumbaMatrix, s: int, x: torch.Tensor) -> torch.Tensor:
    y = np.empty((matrix.num_rows, x.shape[0]), np.float32)
    _matmul(matrix.stored.quant.name)(matrix.rows[s], x.contiguous().numpy(), _HALF, y)
    return torch.from_numpy(y).T


def _torch_product(matrix: NumbaMatrix, s: int, x: torch.Tensor) -> torch.Tensor:
    parts = []
    for first in range(0, matrix.num_rows, _TORCH_ROWS):
        blocks = torch.from_numpy(np.array(matrix.rows[s, first : first + _TORCH_ROWS]))
        parts.append(F.linear(x, matrix.stored.quant.dequantise(blocks)))
    return torch.cat(parts, dim=-1)


@cache
def _matmul(name: str) -> Callable[..., Any]:
    """Compiles rows [R, bytes], x [T, cols], half, y [R, T] -> None for one type; seconds at the
    first call.
    """
    decode = numba.njit(_DECODERS[name])

    @numba.njit(parallel=True, fastmath={"reassoc", "contract"})
    def matmul(rows, x, half, y):
        for r in numba.prange(rows.shape[0]):
            weights = np.empty(x.shape[1], np.float32)
            decode(rows[r], half, weights)
            for t in range(x.shape[0]):
                total = np.float32(0)
                for c in range(x.shape[1]):
                    total += weights[c] * x[t, c]
                y[r, t] = total

    return matmul


def _scale(row, at, half):
    return half[np.int64(row[at]) | (np.int64(row[at + 1]) << 8)]


_scale = numba.njit(_scale, inline="always")


def _decode_f32(row, half, out):
    out[:] = row.view(np.float32)


def _decode_f16(row, half, out):
    for i in range(out.size):
        out[i] = _scale(row, 2 * i, half)


def _decode_bf16(row, half, out):
    bits = row.view(np.uint16).astype(np.uint32) << np.uint32(16)
    out[:] = bits.view(np.float32)


def _decode_q8_0(row, half, out):
    for block in range(out.size // 32):
        at = 34 * block
        d = _scale(row, at, half)
        for i in range(32):
            out[32 * block + i] = d * np.float32(np.int8(row[at + 2 + i]))


# Codes are widened to int32 at once: numba would compute with a uint8 and a literal in int64, which
# costs most of the vector width.
def _decode_q4_0(row, half, out):
    for block in range(out.size // 32):
        at = 18 * block
        d = _scale(row, at, half)
        for i in range(16):
            byte = np.int32(row[at + 2 + i])
            out[32 * block + i] = d * np.float32((byte & np.int32(15)) - np.int32(8))
            out[32 * block + 16 + i] = d * np.float32((byte >> np.int32(4)) - np.int32(8))


def _decode_q4_k(row, half, out):
    for block in range(out.size // 256):
        at = 144 * block
        d, dmin = _scale(row, at, half), _scale(row, at + 2, half)
        for j in range(4):  # 32 bytes hold groups 2 j (low nibbles) and 2 j + 1 (high nibbles)
            a0, b0 = _scale_and_min(row, at + 4, 2 * j)
            a1, b1 = _scale_and_min(row, at + 4, 2 * j + 1)
            a0, b0, a1, b1 = d * a0, dmin * b0, d * a1, dmin * b1
            codes, low = row[at + 16 + 32 * j :], out[256 * block + 64 * j :]
            for i in range(32):
                byte = np.int32(codes[i])
                low[i] = a0 * np.float32(byte & np.int32(15)) - b0
                low[32 + i] = a1 * np.float32(byte >> np.int32(4)) - b1


def _scale_and_min(row, at, group):
    """The 6-bit scale and minimum of a group of 32, from the 12 bytes at `at`."""
    if group < 4:
        scale, low = row[at + group] & 63, row[at + 4 + group] & 63
    else:
        scale = (row[at + 4 + group] & 15) | ((row[at + group - 4] >> 6) << 4)
        low = (row[at + 4 + group] >> 4) | ((row[at + group] >> 6) << 4)
    return np.float32(scale), np.float32(low)


_scale_and_min = numba.njit(_scale_and_min, inline="always")


def _decode_q6_k(row, half, out):
    for block in range(out.size // 256):
        at = 210 * block
        d = _scale(row, at + 208, half)
        for group in range(16):  # of 16 weights
            part, j = group >> 3, group & 7  # half of the block, sixteenth of the half
            low, high = (
                row[at + 64 * part + 16 * (j & 3) :],
                row[at + 128 + 32 * part + 16 * (j & 1) :],
            )
            low_shift, high_shift = np.int32(4 * (j >> 2)), np.int32(2 * (j >> 1))
            scale = d * np.float32(np.int8(row[at + 192 + group]))
            weights = out[256 * block + 16 * group :]
            for i in range(16):
                code = (np.int32(low[i]) >> low_shift) & np.int32(15)
                code |= ((np.int32(high[i]) >> high_shift) & np.int32(3)) << np.int32(4)
                weights[i] = scale * np.float32(code - np.int32(32))


_DECODERS = {
    "F32": _decode_f32,
    "F16": _decode_f16,
    "BF16": _decode_bf16,
    "Q8_0": _decode_q8_0,
    "Q4_0": _decode_q4_0,
    "Q4_K": _decode_q4_k,
    "Q6_K": _decode_q6_k,
}
