"""Kimi K2's forward pass for training: a function of a dictionary of weights and a batch of rows.

Names and shapes of the weights are those of `checkpoint.gguf_writer.tensor_shapes`, experts
stacked, so that training, export and the runtime speak of the same tensors. The mathematics is
that of `hybrid_k2.model`, which a test compares it with; here it is batched and differentiable.
Every row starts at position 0. Knows nothing of data, optimisers or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid_k2.checkpoint.gguf_writer import tensor_shapes
from hybrid_k2.config import K2Config
from hybrid_k2.model.rope import Rope

Weights = Mapping[str, Tensor]


def init_weights(config: K2Config, seed: int, device: str = "cpu") -> dict[str, Tensor]:
    """Float32 weights that keep the size of what they multiply; what is added to the residual
    stream starts small, as in GPT-2.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in tensor_shapes(config):
        if name.endswith("norm.weight"):
            values = torch.ones(shape)
        elif name.endswith("e_score_correction_bias"):
            values = torch.zeros(shape)
        else:
            values = torch.randn(shape, generator=generator)
            if name.endswith("embed_tokens.weight"):
                values *= 0.5
            else:
                values *= shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                values *= (2 * config.num_hidden_layers) ** -0.5
            if name.endswith("lm_head.weight"):
                values *= 0.5
        weights[name] = values.to(device)
    return weights


class TrainingK2:
    """The forward pass for one config; holds the rotations, no weights."""

    def __init__(
        self, config: K2Config, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """dtype: of the matrix products; norms, routing and the residual stream are float32."""
        self.config = config
        self.dtype = dtype
        rotation = Rope(config).rotation(torch.arange(config.max_position_embeddings))
        self._rotation = torch.view_as_real(rotation).to(device)  # [positions, rope / 2, 2]

    def hidden(self, weights: Weights, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """ids: [rows, length] int64. Returns the last layer's output [rows * length, hidden] and,
        for each layer of experts, how many tokens each expert was given, [E] int64.
        """
        rows, length = ids.shape
        h = F.embedding(ids.flatten(), weights["model.embed_tokens.weight"])
        rotation = self._rotation[:length].repeat(rows, 1, 1)
        loads = []
        for layer_idx in range(self.config.num_hidden_layers):
            layer = layer_weights(weights, layer_idx)
            q, k, v = self._project(layer, h, rotation)
            heads = (x.unflatten(0, (rows, length)).transpose(1, 2) for x in (q, k, v))
            mixed = F.scaled_dot_product_attention(
                *heads, is_causal=True, scale=self.config.softmax_scale
            )
            h, load = self._finish_layer(layer, h, mixed.transpose(1, 2).flatten(0, 1))
            if load is not None:
                loads.append(load)
        return h, loads

    def logits(self, weights: Weights, ids: Tensor) -> Tensor:
        """ids: [rows, length] int64. Returns [rows * length, vocab] float32."""
        return self.head(weights, self.hidden(weights, ids)[0])

    def head(self, weights: Weights, h: Tensor) -> Tensor:
        """h: [N, hidden] of the last layer. Returns [N, vocab] float32."""
        x = self._norm(h, weights["model.norm.weight"])
        return self._linear(x, weights["lm_head.weight"]).float()

    def loss(
        self, weights: Weights, ids: Tensor, targets: Tensor, target_weights: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The weighted mean of the targets' negative log likelihoods, nats, and the experts' loads.

        ids, targets: [rows, length] int64; target_weights: the same shape, float32.
        """
        h, loads = self.hidden(weights, ids)
        logits = self.head(weights, h)
        losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
        chosen = target_weights.flatten()
        return (losses * chosen).sum() / chosen.sum().clamp(min=1e-9), loads

    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), weight.to(self.dtype))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), weight, self.config.rms_norm_eps)

    def _project(
        self, layer: Weights, h: Tensor, rotation: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h: [N, hidden]. Returns queries, keys [N, heads, nope + rope], values [N, heads, v]."""
        config, heads = self.config, self.config.num_attention_heads
        x = self._norm(h, layer["input_layernorm.weight"])
        q = self._linear(x, layer["self_attn.q_a_proj.weight"])
        q = self._norm(q, layer["self_attn.q_a_layernorm.weight"])
        q = self._linear(q, layer["self_attn.q_b_proj.weight"]).unflatten(-1, (heads, -1))
        q_nope, q_pe = q.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)

        kv = self._linear(x, layer["self_attn.kv_a_proj_with_mqa.weight"])
        latent, k_pe = kv.split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        latent = self._norm(latent, layer["self_attn.kv_a_layernorm.weight"])
        kv = self._linear(latent, layer["self_attn.kv_b_proj.weight"]).unflatten(-1, (heads, -1))
        k_nope, v = kv.split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)

        q_pe = rotate(q_pe, rotation)
        k_pe = rotate(k_pe[:, None], rotation).expand(-1, heads, -1)
        q = torch.cat([q_nope, q_pe.to(q_nope.dtype)], dim=-1)
        k = torch.cat([k_nope, k_pe.to(k_nope.dtype)], dim=-1)
        return q, k, v.contiguous()

    def _finish_layer(
        self, layer: Weights, h: Tensor, mixed: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """mixed: [N, heads, v]. Returns h behind the layer, and its experts' loads if any."""
        h = h + self._linear(mixed.flatten(1), layer["self_attn.o_proj.weight"])
        x = self._norm(h, layer["post_attention_layernorm.weight"])
        if "mlp.gate.weight" not in layer:
            return h + self._mlp(layer, "mlp", x), None
        ids, weights = self._route(layer, x)
        y, load = self._experts(layer, x, ids, weights)
        return h + y + self._mlp(layer, "mlp.shared_experts", x), load

    def _mlp(self, layer: Weights, name: str, x: Tensor) -> Tensor:
        gate = self._linear(x, layer[f"{name}.gate_proj.weight"])
        up = self._linear(x, layer[f"{name}.up_proj.weight"])
        return self._linear(F.silu(gate) * up, layer[f"{name}.down_proj.weight"])

    def _route(self, layer: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bias steers only the choice; the weights come from the unbiased scores."""
        scores = F.linear(x, layer["mlp.gate.weight"]).sigmoid()
        choice = scores.detach() + layer["mlp.gate.e_score_correction_bias"]
        ids = torch.topk(choice, self.config.num_experts_per_tok, dim=-1, sorted=False).indices
        weights = scores.gather(-1, ids)
        if self.config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * self.config.routed_scaling_factor

    def _experts(
        self, layer: Weights, x: Tensor, ids: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sorts the (token, expert) pairs by expert, multiplies each expert's run, sums back."""
        # Few bits sort fast; where each expert's run ends is found and not counted, as hundreds of
        # thousands of atomic additions to a few hundred places would wait for each other.
        ordered, order = ids.flatten().to(torch.int16).sort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        experts = torch.arange(self.config.n_routed_experts, dtype=torch.int16, device=x.device)
        ends = torch.searchsorted(ordered, experts, right=True, out_int32=True)
        load = ends.diff(prepend=ends.new_zeros(1))
        gate_up = torch.cat(
            [layer["mlp.experts.gate_proj.weight"], layer["mlp.experts.up_proj.weight"]], dim=1
        )
        down = layer["mlp.experts.down_proj.weight"]

        top_k = ids.shape[1]
        runs = ToRuns.apply(x.to(self.dtype), order, place, top_k)
        both = F.grouped_mm(runs, gate_up.to(self.dtype).transpose(1, 2), offs=ends)
        gate, up = both.chunk(2, dim=-1)
        scale = Permuted.apply(weights.flatten(), order, place).unsqueeze(1).to(self.dtype)
        act = F.silu(gate) * up * scale
        y = F.grouped_mm(act, down.to(self.dtype).transpose(1, 2), offs=ends)
        return FromRuns.apply(y, order, place, top_k), load


def layer_weights(weights: Weights, layer_idx: int) -> dict[str, Tensor]:
    """The weights of one layer by the rest of their names, which all layers share."""
    prefix = f"model.layers.{layer_idx}."
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x: [N, heads, rope], pairs interleaved; rotation: [N, rope / 2, 2], cosines and sines."""
    cos, sin = rotation[:, None, :, 0], rotation[:, None, :, 1]
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Permuted(torch.autograd.Function):
    """x[order]; its backward is a gather as well, which indexing's own cannot know."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x[order]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return grad[place], None, None


class ToRuns(torch.autograd.Function):
    """[N, hidden] tokens -> [N * K, hidden], a token for each of its experts, sorted by expert.

    Its backward sums a token's K gradients by a gather, where indexing's own would add atomically.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order, place)
        ctx.top_k = top_k
        return x[order // top_k]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        _, place = ctx.saved_tensors
        return grad[place].unflatten(0, (-1, ctx.top_k)).sum(1), None, None, None


class FromRuns(torch.autograd.Function):
    """The reverse: [N * K, hidden] sorted by expert -> [N, hidden], the sum of a token's K."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, order: Tensor, place: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order, place)
        ctx.top_k = top_k
        return y[place].unflatten(0, (-1, top_k)).sum(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        order, _ = ctx.saved_tensors
        return grad[order // ctx.top_k], None, None, None
