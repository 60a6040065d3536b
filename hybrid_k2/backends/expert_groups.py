"""A layer's experts on a GPU, a few at a time: where their bytes lie in a place of the stream, and
a prompt's tokens through them.

One decoding for all matrices of a group, whose bytes lie one behind the other, because launching
kernels for each would take longer than sending the bytes does. Knows no bus and no routing.
"""

from collections.abc import Iterator, Sequence

import torch

from hybrid_k2.quant.stored import StoredTensor

GROUP = 4  # experts: 2 ms of a PCIe 5 bus
_ALIGN = 256  # bytes, of the first matrix of a kind


class ExpertGroups:
    """gate and up of one format are one matrix of an expert, with gate's rows first."""

    def __init__(self, tensors: Sequence[StoredTensor]) -> None:
        """tensors: gate, up and down, [E, rows, cols]."""
        gate, up, down = tensors
        stacked = [[gate, up], [down]] if gate.quant is up.quant else [[gate], [up], [down]]
        self._kinds, self.place_bytes = [], 0
        for kind in stacked:
            self._kinds.append(_Kind(kind, self.place_bytes))
            self.place_bytes += -(-GROUP * self._kinds[-1].num_bytes // _ALIGN) * _ALIGN

    def pieces(self, experts: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """The bytes of up to GROUP experts, and where in a place each part of them goes."""
        for kind in self._kinds:
            first = kind.first
            for expert in experts:
                for blocks in kind.blocks:
                    yield first, blocks[expert]
                    first += blocks.shape[1]

    def stored(self, expert: int) -> list[torch.Tensor]:
        """gate, up and down of an expert where they lie in host memory."""
        return [blocks[expert] for kind in self._kinds for blocks in kind.blocks]

    def in_place(self, data: torch.Tensor, num_experts: int) -> list[torch.Tensor]:
        """The bytes of a place's experts, a tensor for each kind of matrix."""
        return [k.first_bytes(data, num_experts) for k in self._kinds]

    def parts(self, data: torch.Tensor, index: int) -> list[torch.Tensor]:
        """gate, up and down of one of a place's experts, as they lie there."""
        return [part for kind in self._kinds for part in kind.parts(data, index)]

    def joined(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As in_place, of one expert's gate, up and down that lie anywhere."""
        gate, up, down = parts
        return [torch.cat([gate, up]), down] if len(self._kinds) == 2 else [gate, up, down]

    def __call__(
        self, blocks: Sequence[torch.Tensor], num_tokens: Sequence[int], x: torch.Tensor
    ) -> torch.Tensor:
        """down(silu(gate(x)) * up(x)) with each expert's own weights.

        blocks: the experts' bytes by kind of matrix.  num_tokens: of each of the experts.  x:
        [sum(num_tokens), H] bfloat16, expert after expert; returned likewise.
        """
        from hybrid_k2.kernels.activation import silu_multiply

        *inner, down = (
            kind.dequantise(part, len(num_tokens))
            for kind, part in zip(self._kinds, blocks, strict=True)
        )
        gate_up = x.new_empty(x.shape[0], sum(weights.shape[1] for weights in inner))
        first = 0
        for weights in inner:
            columns = slice(first, first + weights.shape[1])
            _multiply(x, weights, num_tokens, gate_up[:, columns])
            first = columns.stop
        return _multiply(silu_multiply(gate_up), down, num_tokens, torch.empty_like(x))


class _Kind:
    """Matrices of one format that take the same input: gate with up, or down."""

    def __init__(self, tensors: Sequence[StoredTensor], first: int) -> None:
        """first: where in a place the group's first expert lies."""
        num_experts, _, self._cols = tensors[0].shape
        self._quant = tensors[0].quant
        self._rows = sum(tensor.shape[1] for tensor in tensors)
        self.first = first
        self.blocks = [tensor.as_torch().view(num_experts, -1) for tensor in tensors]
        self.num_bytes = sum(blocks.shape[1] for blocks in self.blocks)  # of an expert

    def first_bytes(self, data: torch.Tensor, num_experts: int) -> torch.Tensor:
        """Of the first experts of a place."""
        return data[self.first : self.first + num_experts * self.num_bytes]

    def parts(self, data: torch.Tensor, index: int) -> Sequence[torch.Tensor]:
        """The bytes of each tensor's matrix, of one expert of a place."""
        first = self.first + index * self.num_bytes
        return data[first : first + self.num_bytes].split([b.shape[1] for b in self.blocks])

    def dequantise(self, blocks: torch.Tensor, num_experts: int) -> torch.Tensor:
        """bfloat16 [num_experts, rows, cols]."""
        from hybrid_k2.kernels.dequantise import dequantise
        from hybrid_k2.kernels.matrix import over_blocks

        return dequantise(over_blocks(blocks, self._quant, (num_experts, self._rows, self._cols)))


def _multiply(
    x: torch.Tensor, weights: torch.Tensor, num_tokens: Sequence[int], out: torch.Tensor
) -> torch.Tensor:
    """out: [T, rows], filled expert by expert."""
    first = 0
    for matrix, count in zip(weights, num_tokens, strict=True):
        if count:
            rows = slice(first, first + count)
            torch.mm(x[rows], matrix.T, out=out[rows])
            first = rows.stop
    return out
