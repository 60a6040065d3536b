"""Which experts lie on the GPU, and where: one buffer of bytes for each of gate, up and down.

The offsets are tensors on the GPU, rewritten in place when experts move, so that a captured graph
sees the change. Owns no memory management and launches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hybrid_k2.kernels.matrix import DECODED, block_layout
from hybrid_k2.quant import QuantFormat


@dataclass(frozen=True, slots=True)
class ExpertMatrix:
    """One projection of a layer's experts.

    data: uint8 [bytes], on the GPU. offsets: int64 [num_experts], on the GPU: where in data an
    expert's matrix begins, a multiple of 16, or -1 for an expert that is not there. shape: (rows,
    cols) of one expert. is_apart: each expert's bytes are in the layout of matrix.apart instead of
    plain GGUF blocks; both work, apart is faster for blocks of 18, 22, 34 and 210 bytes.
    """

    data: torch.Tensor
    quant: QuantFormat
    shape: tuple[int, int]
    offsets: torch.Tensor
    is_apart: bool = False

    @property
    def constants(self) -> dict[str, Any]:
        """What a kernel is compiled for, by parameter, as in QuantisedMatrix, and the bases."""
        decoded = DECODED[self.quant.name]
        num_blocks = self.shape[0] * self.shape[1] // self.quant.block_size
        codes_base, codes_stride, header_base, header_stride = block_layout(
            self.quant, num_blocks, self.is_apart
        )
        return {
            "decode": decoded.function,
            "UNITS_PER_ROW": self.shape[1] // 32,
            "UNITS_PER_BLOCK": self.quant.block_size // 32,
            "CODES_BASE": codes_base,
            "CODES_STRIDE": codes_stride,
            "HEADER_BASE": header_base,
            "HEADER_STRIDE": header_stride,
            "INTERLEAVED": decoded.interleaved,
            "HAS_OFFSET": decoded.has_offset,
            "ALIGNED": codes_base % 4 == 0 and codes_stride % 4 == 0,
        }

    @property
    def pointers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The bytes as words of codes, as bytes and as float16, and the offsets."""
        size = 4 if self.constants["ALIGNED"] else 2
        codes = self.data[: self.data.numel() // size * size]
        halves = self.data[: self.data.numel() // 2 * 2].view(torch.float16)
        words = codes.view(torch.int32 if size == 4 else torch.uint16)
        return words, self.data, halves, self.offsets


@dataclass(frozen=True, slots=True)
class ExpertTable:
    """A layer's experts. gate and up have one format, shape [expert width, hidden], and one layout;
    an expert is on the GPU if gate's offset says so, and then all three must be.
    """

    gate: ExpertMatrix
    up: ExpertMatrix
    down: ExpertMatrix

    def __post_init__(self) -> None:
        same = ("quant", "shape", "is_apart")
        assert all(getattr(self.gate, name) == getattr(self.up, name) for name in same), self
        assert self.down.shape == self.gate.shape[::-1], (self.down.shape, self.gate.shape)
