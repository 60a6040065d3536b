"""Multi-head latent attention on a GPU, in bfloat16; see attention.py for the two ways to attend.

Decode is absorbed and reads the paged cache in place; many queries of one sequence share keys and
values that are decompressed for a few heads at a time. Owns the decompression weights. Projections,
norms and the cache's growth are the model's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.registry import stays_stored
from hybrid_k2.backends.vram import launching_on
from hybrid_k2.config import K2Config
from hybrid_k2.kernels.pages import dequantise_rows, quantise_rows
from hybrid_k2.quant.stored import StoredTensor

# Decompressed keys and values, or scores, of one block; 128K tokens would need 6.4 GB at once.
_SCRATCH_BYTES = 512 << 20
_CUDNN_FROM = 1024  # tokens of a prompt's first step
_DECOMPRESS_FROM = 16  # queries; fewer attend to the latents themselves


@dataclass(frozen=True, slots=True)
class DecodePositions:
    """Where the tokens of a decode step stand, one a sequence; all on the GPU and never moved.

    block_table: [B, max_pages] int32.  positions: [B] int32.  lengths: [B] int32, positions + 1.
    inv_freq: [rope / 2] float64.  rope_factor: what cos and sin are multiplied by.
    """

    block_table: torch.Tensor
    positions: torch.Tensor
    lengths: torch.Tensor
    inv_freq: torch.Tensor
    rope_factor: float


class AttentionGpu:
    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        context: BackendContext,
        device: str = "cuda:0",
        kv_dtype: str = "bfloat16",
    ) -> None:
        self.device = torch.device(device)
        self.kv_dtype = getattr(torch, kv_dtype)
        self._config = context.config
        # Twice flash attention's speed where it takes keys wider than values (H200: 2.2 of 5.3 ms).
        self._has_cudnn = device != "cpu" and torch.cuda.get_device_capability(device)[0] == 9
        self._keys, self._values = _head_weights(tensors, context.config, self.device)

    def __call__(
        self, q_nope: torch.Tensor, q_pe: torch.Tensor, latents: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """As Attention's: causal attention of the cache's last T tokens over all of it.

        Returns [T, heads * v_head_dim] float32.
        """
        rows = latents[0] if len(latents) == 1 else torch.cat(list(latents))
        if rows.dtype == torch.int8:
            rows = dequantise_rows(rows, self._config.kv_lora_rank).to(torch.bfloat16)
        q_nope, q_pe = q_nope.to(rows.dtype), q_pe.to(rows.dtype)
        attend = self._absorbed if q_nope.shape[0] < _DECOMPRESS_FROM else self._decompressed
        with launching_on(self.device):
            return attend(q_nope, q_pe, rows).flatten(1)

    def cache_rows(self, latents: torch.Tensor) -> torch.Tensor:
        """What the cache is given for latents [T, latent_dim] float32: codes and scales where it
        holds 8 bits, else them, to be rounded.
        """
        if self.kv_dtype != torch.int8:
            return latents
        return quantise_rows(latents, self._config.kv_lora_rank)

    def decode(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        kv_norm: tuple[torch.Tensor, float],
        pages: torch.Tensor,
        at: DecodePositions,
    ) -> torch.Tensor:
        """One token of each sequence: stores its latent row and attends to all of its own.

        q: [B, heads * (nope + rope)] float32.  kv: [B, rank + rope] float32, not yet normalised.
        kv_norm: weight and eps.  pages: the layer's [P, 64, columns]. Returns [B, heads * v]
        float32; launches kernels only, so that it can be captured.
        """
        from hybrid_k2.kernels.mla_decode import mla_decode
        from hybrid_k2.kernels.rope import rotate_and_cache

        config = self._config
        q = q.view(q.shape[0], config.num_attention_heads, config.qk_head_dim)
        shape = (*q.shape[:2], config.latent_dim)
        query = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        query[..., : config.kv_lora_rank] = self._keys.product(q[..., : config.qk_nope_head_dim])
        rotate_and_cache(
            *(q, query, kv, *kv_norm, at.inv_freq, at.rope_factor),
            *(pages, at.block_table, at.positions),
        )
        mixed = mla_decode(
            *(query, pages, at.block_table, at.lengths, config.softmax_scale, config.kv_lora_rank)
        )
        return self._values.product(mixed).flatten(1)

    def _absorbed(
        self, q_nope: torch.Tensor, q_pe: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        config, (num_queries, length) = self._config, (q_nope.shape[0], rows.shape[0])
        query = torch.cat([self._keys.product(q_nope).to(rows.dtype), q_pe], dim=-1)
        scores = (query @ rows.T).float() * config.softmax_scale  # [T, heads, L]
        last = torch.arange(length - num_queries, length, device=rows.device)
        future = torch.arange(length, device=rows.device) > last[:, None]  # [T, L]
        weights = scores.masked_fill_(future[:, None], float("-inf")).softmax(dim=-1)
        mixed = weights.to(rows.dtype) @ rows[:, : config.kv_lora_rank]  # [T, heads, rank]
        return self._values.product(mixed)

    def _decompressed(
        self, q_nope: torch.Tensor, q_pe: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        config, (num_queries, length) = self._config, (q_nope.shape[0], rows.shape[0])
        num_heads, head_dim = config.num_attention_heads, config.qk_head_dim
        c, k_pe = rows.split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        keys, values = self._keys.dense(), self._values.dense()  # [h, rank, nope], [h, v, rank]
        out = q_nope.new_empty(num_queries, num_heads, config.v_head_dim, dtype=torch.float32)
        # Flash attention aligns the last query with the last key, and wants values as wide as keys.
        mask, width = causal_lower_right(num_queries, length), max(head_dim, config.v_head_dim)
        step = max(1, _SCRATCH_BYTES // (4 * length * width))
        for first in range(0, num_heads, step):
            heads = slice(first, min(first + step, num_heads))
            q = torch.cat([q_nope[:, heads], q_pe[:, heads]], dim=-1).transpose(0, 1)
            k = c.new_empty(q.shape[0], length, head_dim)
            torch.matmul(c, keys[heads], out=k[..., : config.qk_nope_head_dim])
            k[..., config.qk_nope_head_dim :] = k_pe
            v = c @ values[heads].transpose(1, 2)
            if self._has_cudnn and num_queries == length >= _CUDNN_FROM:
                with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                    mixed = F.scaled_dot_product_attention(
                        q[None], k[None], v[None], is_causal=True, scale=config.softmax_scale
                    )[0]
            else:
                q, k, v = (_widened(part, width) for part in (q, k, v))
                with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
                    mixed = F.scaled_dot_product_attention(
                        q[None], k[None], v[None], attn_mask=mask, scale=config.softmax_scale
                    )[0]
            out[:, heads] = mixed[..., : config.v_head_dim].transpose(0, 1)
        return out


def _widened(x: torch.Tensor, width: int) -> torch.Tensor:
    """x with zeros behind its columns; as it is where there are enough."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


class StoredHeads:
    """One matrix for each head, in its stored blocks."""

    def __init__(self, stored: StoredTensor, device: torch.device) -> None:
        from hybrid_k2.kernels.matrix import upload

        self._matrix = upload(stored, device=device)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, heads, cols] -> [T, heads, rows] float32."""
        from hybrid_k2.kernels.linear import quantised_linear

        return quantised_linear(x, self._matrix)

    def dense(self) -> torch.Tensor:
        """[heads, rows, cols] bfloat16."""
        from hybrid_k2.kernels.dequantise import dequantise

        return dequantise(self._matrix)


class DenseHeads:
    """The same in bfloat16: for files with kv_b only, and for formats that no kernel reads."""

    def __init__(self, weights: torch.Tensor, device: torch.device) -> None:
        self._weights = weights.to(torch.bfloat16).to(device).contiguous()

    def product(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(torch.bfloat16).transpose(0, 1)
        return torch.bmm(x, self._weights.transpose(1, 2)).transpose(0, 1).float()

    def dense(self) -> torch.Tensor:
        return self._weights


def _head_weights(
    tensors: Mapping[str, StoredTensor], config: K2Config, device: torch.device
) -> tuple[StoredHeads | DenseHeads, StoredHeads | DenseHeads]:
    """W_UK as [heads, rank, nope] and W_UV as [heads, v, rank]."""
    if "k_b_proj" in tensors:
        pair = tensors["k_b_proj"], tensors["v_b_proj"]
        keys, values = (
            StoredHeads(t, device)
            if stays_stored(t.quant.name)
            else DenseHeads(t.dequantise(), device)
            for t in pair
        )
        return keys, values
    kv_b = tensors["kv_b_proj"].dequantise()
    kv_b = kv_b.view(config.num_attention_heads, -1, config.kv_lora_rank)
    keys = kv_b[:, : config.qk_nope_head_dim].transpose(1, 2)
    return DenseHeads(keys, device), DenseHeads(kv_b[:, config.qk_nope_head_dim :], device)
