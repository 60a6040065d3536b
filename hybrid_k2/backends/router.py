"""Which experts a token goes to, and with what weight: DeepSeek-V3's noaux_tc gate (arXiv
2412.19437, section 2.1.2).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.config import K2Config
from hybrid_k2.errors import BadInputError
from hybrid_k2.quant.stored import StoredTensor

if TYPE_CHECKING:
    from hybrid_k2.kernels.handoff import GpuHits


class Router:
    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        context: BackendContext,
        device: str = "cpu",
        top_k: int = 0,
    ) -> None:
        """top_k: experts of a token, 0 for as many as the model was trained with. Fewer cost less
        time, and quality: `hybrid-k2 perplexity` measures how much.
        """
        most = context.config.num_experts_per_tok
        if top_k > most:
            raise BadInputError(f"router: top_k: {top_k}, expected 0 to the model's {most}")
        self._top_k = top_k or most
        self.device = torch.device(device)
        self._config = context.config
        self._bias = tensors["e_score_correction_bias"].dequantise().to(self.device)
        if self.device.type == "cpu":
            self._kernels = context.kernels
            self._matrix = context.kernels.matrix(tensors["weight"])
        else:
            self._kernels = None
            self._weight = tensors["weight"].dequantise().to(self.device)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [T, hidden] float32. Returns expert ids [T, top_k] int32 and their weights [T, top_k]
        float32, on `device`.
        """
        x = x.to(self.device)
        if self._kernels is not None:
            logits = self._kernels.linear(self._matrix, x)
        else:
            logits = F.linear(x, self._weight)
        return route(logits, self._bias, self._config, self._top_k)

    def publish(
        self,
        x: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        published: torch.Tensor,
        step: torch.Tensor,
        gpu: "GpuHits | None" = None,
        late: tuple[torch.Tensor, int] | None = None,
    ) -> None:
        """Chooses into mapped memory and then tells the CPU; on a GPU only.

        Arguments as kernels.handoff.route_and_publish takes them.
        """
        from hybrid_k2.kernels.handoff import route_and_publish

        route_and_publish(
            F.linear(x, self._weight),
            self._bias,
            expert_ids,
            weights,
            published,
            step,
            top_k=self._top_k,
            scaling=self._config.routed_scaling_factor,
            normalise=self._config.norm_topk_prob,
            gpu=gpu,
            late=late,
        )


def route(
    logits: torch.Tensor, bias: torch.Tensor, config: K2Config, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The bias steers only the choice; the weights come from the unbiased scores.

    logits: [T, E] float32.  bias: [E] float32.  Returns ids [T, top_k] int32, weights likewise
    float32.
    """
    scores = logits.sigmoid()
    ids = torch.topk(scores + bias, top_k, dim=-1, sorted=False).indices
    weights = scores.gather(-1, ids)
    if config.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids.to(torch.int32), weights * config.routed_scaling_factor
