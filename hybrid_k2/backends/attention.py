"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) over a cache of latents.

The cache holds one row of kv_lora_rank + qk_rope_head_dim numbers per token: the normalised latent
c and the rotated k_pe, shared by all heads. Two ways to attend over it give the same result:
- naive (prefill): keys and values of each head are decompressed from c; fewer FLOPs when many
  queries share them.
- absorbed (decode): the query is carried into latent space instead and attends to c itself;
  nothing is decompressed. Owns the decompression weights and the softmax. Projections, norms, RoPE
  and the cache's growth are the model's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.config import K2Config
from hybrid_k2.quant.stored import StoredTensor

# Scores and decompressed keys of one block of heads stay below this; 128K tokens of context would
# need 8.6 GB at once.
_SCRATCH_BYTES = 64 << 20
_MOST_RUNS = 4  # of rows that are multiplied where they lie; more and shorter ones cost a copy
_PARALLEL_FROM = 1 << 23  # multiply-adds; about 0.2 ms of one core
_KV_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Attention:
    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        context: BackendContext,
        device: str = "cpu",
        kv_dtype: str = "float32",
    ) -> None:
        config = context.config
        self.device = torch.device(device)
        self.kv_dtype = _KV_DTYPES[kv_dtype]
        self._config = config
        self._naive_from = naive_from_tokens(config)
        self._num_threads = context.runtime.resolved_threads
        if self.device.type == "cpu" and "k_b_proj" in tensors:
            self._latent: LatentProjections = StoredProjections(tensors, context)
        else:
            self._latent = DenseProjections(tensors, config, self.device)

    def __call__(
        self, q_nope: torch.Tensor, q_pe: torch.Tensor, latents: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Causal attention of the cache's last T tokens over all of it.

        q_nope: [T, heads, qk_nope_head_dim], q_pe: [T, heads, qk_rope_head_dim] (rotated), float32
        on `device`.
        latents: the cache's rows in order, as one or more [n, kv_lora_rank + qk_rope_head_dim] of
        its dtype; L >= T of them in all, the T tokens' own included.
        Returns [T, heads * v_head_dim] float32.
        """
        attend = self._naive if q_nope.shape[0] >= self._naive_from else self._absorbed
        if len(latents) > _MOST_RUNS:
            latents = [torch.cat(list(latents))]
        num_numbers = sum(rows.numel() for rows in latents)
        multiply_adds = q_nope.shape[0] * q_nope.shape[1] * num_numbers
        with torch_threads(self._num_threads if multiply_adds > _PARALLEL_FROM else 1):
            out = attend(q_nope.transpose(0, 1), q_pe.transpose(0, 1), latents)  # [heads, T, v]
        return out.transpose(0, 1).flatten(1)

    def cache_rows(self, latents: torch.Tensor) -> torch.Tensor:
        """What the cache is given for latents [T, latent_dim] float32: them, to be rounded."""
        return latents

    def _absorbed(
        self, q_nope: torch.Tensor, q_pe: torch.Tensor, latents: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        rank = self._config.kv_lora_rank
        query = torch.cat([self._latent.queries(q_nope), q_pe], dim=-1)  # [heads, T, latent]
        mixed = query.new_empty(*query.shape[:2], rank)
        num_heads, num_queries = query.shape[:2]
        length = sum(rows.shape[0] for rows in latents)
        step = max(1, _SCRATCH_BYTES // (4 * num_heads * length))
        for first in range(0, num_queries, step):
            last = min(first + step, num_queries)
            visible = [rows.float() for rows in _first_rows(latents, length - num_queries + last)]
            block = query[:, first:last].flatten(0, 1)
            scores = _joined([block @ rows.T for rows in visible], dim=1)  # [heads * t, L]
            weights = self._softmax(scores.view(num_heads, last - first, -1)).flatten(0, 1)
            parts = weights.split([rows.shape[0] for rows in visible], dim=1)
            out = parts[0] @ visible[0][:, :rank]
            for part, rows in zip(parts[1:], visible[1:], strict=True):
                out.addmm_(part, rows[:, :rank])
            mixed[:, first:last] = out.view(num_heads, last - first, rank)
        return self._latent.values(mixed)

    def _naive(
        self, q_nope: torch.Tensor, q_pe: torch.Tensor, latents: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        config = self._config
        num_heads, num_queries = q_nope.shape[:2]
        rows = _joined(latents, dim=0)
        length = rows.shape[0]
        c = rows[:, : config.kv_lora_rank].float()
        k_pe = rows[:, config.kv_lora_rank :].float()
        out = q_nope.new_empty(num_heads, num_queries, config.v_head_dim)
        bytes_per_head = 4 * length * (config.qk_head_dim + config.v_head_dim + num_queries)
        step = max(1, _SCRATCH_BYTES // bytes_per_head)
        for first in range(0, num_heads, step):
            heads = slice(first, min(first + step, num_heads))
            keys, values = self._latent.decompress(heads)  # [h, rank, nope], [h, rank, v]
            scores = q_nope[heads] @ (c @ keys).transpose(1, 2) + q_pe[heads] @ k_pe.T
            out[heads] = self._softmax(scores) @ (c @ values)
        return out

    def _softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """scores: [heads, t, L], unscaled; the last t of L keys are the queries' own, so query i
        sees L - t + i + 1.
        """
        num_queries, length = scores.shape[1:]
        scores *= self._config.softmax_scale
        if num_queries > 1:
            future = torch.ones(num_queries, length, dtype=torch.bool, device=scores.device)
            scores.masked_fill_(future.triu_(length - num_queries + 1), float("-inf"))
        return scores.softmax(dim=-1)


def _first_rows(latents: Sequence[torch.Tensor], num_rows: int) -> Iterator[torch.Tensor]:
    for rows in latents:
        if num_rows <= 0:
            return
        yield rows[:num_rows]
        num_rows -= rows.shape[0]


def _joined(parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """One tensor of all; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


@contextmanager
def torch_threads(num_threads: int) -> Iterator[None]:
    """Torch's operations on the CPU use so many threads within; costs under a microsecond."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def naive_from_tokens(config: K2Config) -> int:
    """Queries from which decompressing costs less than attending in latent space (about 171 for
    K2).

    Per cached token and head: decompressing costs rank * (nope + v) multiply-adds once, and saves
    (rank + rope + rank) - (nope + rope + v) for each query.
    """
    once = config.kv_lora_rank * (config.qk_nope_head_dim + config.v_head_dim)
    saved = 2 * config.kv_lora_rank - config.qk_nope_head_dim - config.v_head_dim
    return once // saved + 1 if saved > 0 else 1 << 62


class LatentProjections(Protocol):
    """W_UK and W_UV of every head, applied from either side."""

    def queries(self, q_nope: torch.Tensor) -> torch.Tensor:
        """[heads, T, nope] -> W_UK^T q: [heads, T, rank]."""

    def values(self, mixed: torch.Tensor) -> torch.Tensor:
        """[heads, T, rank] -> W_UV o: [heads, T, v]."""

    def decompress(self, heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 matrices that turn latents [L, rank] into keys and values: [h, rank, nope], [h,
        rank, v].
        """


class StoredProjections:
    """On the CPU, straight from the file's k_b [heads, rank, nope] and v_b [heads, v, rank]
    blocks.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], context: BackendContext) -> None:
        self._k_b, self._v_b = tensors["k_b_proj"], tensors["v_b_proj"]
        self._kernels = context.kernels
        self._k_matrix = context.kernels.matrix(self._k_b)
        self._v_matrix = context.kernels.matrix(self._v_b)

    def queries(self, q_nope: torch.Tensor) -> torch.Tensor:
        return self._kernels.batched_linear(self._k_matrix, q_nope)

    def values(self, mixed: torch.Tensor) -> torch.Tensor:
        return self._kernels.batched_linear(self._v_matrix, mixed)

    def decompress(self, heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return self._k_b.dequantise(heads), self._v_b.dequantise(heads).transpose(1, 2)


class DenseProjections:
    """Dequantised once: on a GPU, and on the CPU for files with kv_b only, whose K half lies
    transposed.
    """

    def __init__(
        self, tensors: Mapping[str, StoredTensor], config: K2Config, device: torch.device
    ) -> None:
        if "k_b_proj" in tensors:
            keys, values = tensors["k_b_proj"].dequantise(), tensors["v_b_proj"].dequantise()
        else:
            kv_b = (
                tensors["kv_b_proj"]
                .dequantise()
                .view(config.num_attention_heads, -1, config.kv_lora_rank)
            )
            keys = kv_b[:, : config.qk_nope_head_dim].transpose(1, 2)
            values = kv_b[:, config.qk_nope_head_dim :]
        self._keys = keys.contiguous().to(device)  # [heads, rank, nope]
        self._values = values.transpose(1, 2).contiguous().to(device)  # [heads, rank, v]

    def queries(self, q_nope: torch.Tensor) -> torch.Tensor:
        return q_nope @ self._keys.transpose(1, 2)

    def values(self, mixed: torch.Tensor) -> torch.Tensor:
        return mixed @ self._values

    def decompress(self, heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return self._keys[heads], self._values[heads]
