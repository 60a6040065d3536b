"""Kimi K2 from token ids to logits: embedding, 61 layers of latent attention and mixture of
experts, norm, head.

The whole forward pass, readable top to bottom; what computes each module, and where, was decided
by the plan and comes in as `modules`, by name. Activations are float32 between modules. Knows
nothing of files, rules, sampling or text.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hybrid_k2.backends.kernel_counters import KernelCounters
from hybrid_k2.config import K2Config
from hybrid_k2.model.kv_cache import LatentCache, PagePool
from hybrid_k2.model.rope import Rope, rotate
from hybrid_k2.model.span import Span

log = logging.getLogger(__name__)


class KimiK2:
    def __init__(
        self,
        config: K2Config,
        modules: Mapping[str, Any],
        num_pages: int,
        counters: Callable[[], KernelCounters] = KernelCounters,
    ) -> None:
        """modules: a backend for every module name of the plan.  num_pages: of KV cache, shared by
        all sequences.  counters: of the CPU kernels that the modules compute with.
        """
        self.config = config
        self.counters = counters
        self._rope = Rope(config)
        self._embed_tokens = modules["model.embed_tokens"]
        self._layers = [
            DecoderLayer(config, layer_idx, modules)
            for layer_idx in range(config.num_hidden_layers)
        ]
        placements = [layer.attention.cache_placement for layer in self._layers]
        self.pool = PagePool(placements, config.latent_dim, num_pages)
        self._norm = modules["model.norm"]
        self._lm_head = modules["lm_head"]
        self._decode_graphs = _decode_graphs(config, modules, self.pool, self._rope)

    def new_cache(self) -> LatentCache:
        """An empty sequence's cache, its pages from the model's pool."""
        return self.pool.new_cache()

    @property
    def decode_graphs(self) -> Any:
        """The captured decode steps, a model.decode_graph.DecodeGraphs; None where none can be."""
        return self._decode_graphs

    @torch.inference_mode()
    def forward(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        """One step over all spans together, so that weights are read once; advances each cache.

        Returns per span its logits [1 or T, vocab] float32 on the CPU, or None where none are
        wanted. Raises OutOfPages before anything is computed.
        """
        for span in spans:
            span.cache.reserve(span.cache.length + span.num_tokens)
        if self._decode_graphs is not None and self._decode_graphs.takes(spans):
            return self._decode_graphs.run(spans)
        token_ids = torch.tensor([token_id for span in spans for token_id in span.token_ids])
        rotation = self._rope.rotation(_positions(spans))
        # Once a step: in a layer, the copy would queue behind experts that are sent ahead.
        devices = {layer.attention.device for layer in self._layers}
        rotations = {device: rotation.to(device) for device in devices}
        is_decode = all(span.num_tokens == 1 for span in spans)
        h, owed = self._embed_tokens(token_ids), None  # [T, hidden]
        for layer in self._layers:
            rotation = rotations[layer.attention.device]
            h, owed = layer(h, rotation, spans, owed, may_defer=is_decode)
        for span in spans:
            span.cache.length += span.num_tokens
        return self._logits(h, spans)

    def _logits(self, h: torch.Tensor, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        wanted = [span.num_logits for span in spans]
        if not any(wanted):
            return [None] * len(spans)
        ends = torch.tensor([0] + [span.num_tokens for span in spans]).cumsum(0).tolist()
        rows = torch.cat([h[end - n : end] for end, n in zip(ends[1:], wanted, strict=True) if n])
        logits = self._lm_head(self._norm(rows)).float().cpu()
        parts = iter(logits.split([n for n in wanted if n]))
        return [next(parts) if n else None for n in wanted]


def _decode_graphs(config: K2Config, modules: Mapping[str, Any], pool: PagePool, rope: Rope) -> Any:
    """Captured decode steps where a GPU runs all but the routed experts, else None."""
    if modules["model.norm"].device.type != "cuda":
        return None
    from hybrid_k2.model.decode_graph import DecodeGraphs, refusal

    reason = refusal(config, modules)
    if reason is None:
        return DecodeGraphs(config, modules, pool, rope)
    log.warning("decode is not captured in a CUDA graph, and slower: %s", reason)
    return None


def _positions(spans: Sequence[Span]) -> torch.Tensor:
    """[T] int64: where in its own sequence each token stands."""
    starts = ((span.cache.length, span.num_tokens) for span in spans)
    return torch.cat([torch.arange(start, start + length) for start, length in starts])


class DecoderLayer:
    """h += attention(norm(h)); h += feed_forward(norm(h)) + what the layer before owes."""

    def __init__(self, config: K2Config, layer_idx: int, modules: Mapping[str, Any]) -> None:
        name = f"model.layers.{layer_idx}"
        self.attention = LatentAttention(config, layer_idx, modules)
        self._input_layernorm = modules[f"{name}.input_layernorm"]
        self._post_attention_layernorm = modules[f"{name}.post_attention_layernorm"]
        is_dense = layer_idx < config.first_k_dense_replace
        self._feed_forward = modules[f"{name}.mlp"] if is_dense else None
        self._experts = None if is_dense else MixtureOfExperts(f"{name}.mlp", modules)

    def __call__(
        self,
        h: torch.Tensor,
        rotation: torch.Tensor,
        spans: Sequence[Span],
        owed: torch.Tensor | None = None,
        *,
        may_defer: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """h: [T, hidden], the spans' tokens one after another.  owed: what the layer before left to
        this one. Returns h on the attention's device, and what this one leaves to the next.
        """
        h = h.to(self.attention.device)
        h = h + self.attention(self._input_layernorm(h), rotation, spans).to(h.device)
        x = self._post_attention_layernorm(h)
        if self._experts is None:
            return h + self._feed_forward(x).to(h.device), None
        y, left = self._experts(x, may_defer)
        h = h + y.to(h.device)
        return (h if owed is None else h + owed.to(h.device)), left


class LatentAttention:
    """Projections, RoPE and the cache around the attention backend."""

    def __init__(self, config: K2Config, layer_idx: int, modules: Mapping[str, Any]) -> None:
        name = f"model.layers.{layer_idx}.self_attn"
        self._config = config
        self._layer_idx = layer_idx
        self._attend = modules[name]
        self._kv_a_proj = modules[f"{name}.kv_a_proj_with_mqa"]
        self._kv_a_norm = modules[f"{name}.kv_a_layernorm"]
        self._o_proj = modules[f"{name}.o_proj"]
        if config.q_lora_rank is None:
            self._q_proj = modules[f"{name}.q_proj"]
        else:
            self._q_a_proj = modules[f"{name}.q_a_proj"]
            self._q_a_norm = modules[f"{name}.q_a_layernorm"]
            self._q_b_proj = modules[f"{name}.q_b_proj"]

    @property
    def device(self) -> torch.device:
        return self._attend.device

    @property
    def cache_placement(self) -> tuple[torch.device, torch.dtype]:
        return self._attend.device, self._attend.kv_dtype

    def __call__(
        self, x: torch.Tensor, rotation: torch.Tensor, spans: Sequence[Span]
    ) -> torch.Tensor:
        """x: [T, hidden], normalised.  rotation: [T, rope / 2] on `device`. Returns [T, hidden]."""
        config = self._config
        q = self._queries(x).to(self.device).unflatten(-1, (config.num_attention_heads, -1))
        q_nope, q_pe = q.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        q_pe = rotate(q_pe, rotation)  # [T, heads, rope]

        kv = self._kv_a_proj(x).to(self.device)
        latent, k_pe = kv.split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        latent = self._kv_a_norm(latent).to(self.device)
        latents = torch.cat([latent, rotate(k_pe, rotation)], dim=-1)  # [T, latent_dim]
        cached = self._attend.cache_rows(latents)

        outs, first = [], 0
        for span in spans:
            rows = slice(first, first + span.num_tokens)
            start = span.cache.length
            span.cache.write(self._layer_idx, start, cached[rows])
            seen = span.cache.read(self._layer_idx, start + span.num_tokens)
            outs.append(self._attend(q_nope[rows], q_pe[rows], seen))
            first = rows.stop
        return self._o_proj(torch.cat(outs))

    def _queries(self, x: torch.Tensor) -> torch.Tensor:
        if self._config.q_lora_rank is None:
            return self._q_proj(x)
        return self._q_b_proj(self._q_a_norm(self._q_a_proj(x)))


class MixtureOfExperts:
    """Routed experts plus the shared expert, which runs while the routed ones are under way."""

    def __init__(self, name: str, modules: Mapping[str, Any]) -> None:
        self._router = modules[f"{name}.gate"]
        self._experts = modules[f"{name}.experts"]
        self._shared_experts = modules[f"{name}.shared_experts"]

    def __call__(
        self, x: torch.Tensor, may_defer: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x: [T, hidden], normalised. Returns [T, hidden], and what the next layer adds of it."""
        expert_ids, weights = self._router(x)
        late_ids = None
        if may_defer and self._experts.deferred_experts:
            expert_ids, late_ids = _deferred(expert_ids, weights, self._experts.deferred_experts)
        slot = self._experts.submit(x, expert_ids, weights)
        shared = self._shared_experts(x)
        y = self._experts.sync(slot, shared)
        if late_ids is None:
            return y, None
        return y, self._experts.sync(self._experts.submit(x, late_ids, weights))


def _deferred(
    expert_ids: torch.Tensor, weights: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's ids without the `count` of least weight, and only those; [T, K], -1 elsewhere.

    The CPU so has work while a GPU does the next layer's attention (KTransformers' expert deferral,
    SOSP 2025); decode_graph.py is where that saves time.
    """
    lightest = weights.topk(min(count, weights.shape[-1]), dim=-1, largest=False).indices
    is_late = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, lightest, True)
    return expert_ids.masked_fill(is_late, -1), expert_ids.masked_fill(~is_late, -1)
