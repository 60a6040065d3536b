"""Other programs' routed experts, to be timed beside ours: what each must offer, and their names.

Each computes the same layer from the same weights, in its own storage format, with the thread count
at which it is fastest. A peer's module is imported when it is asked for. Knows no timing.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import torch

from hybrid_k2.bench.layer import Inputs, Layer, LayerShape
from hybrid_k2.errors import BadInputError


class ExpertsEngine(Protocol):
    """Somebody's implementation of a layer of experts."""

    quant: str  # the format in which it holds the weights
    tier: str  # which code serves them
    threads: int
    expert_bytes: int  # what one expert's weights take there

    def prepare(self, inputs: Inputs) -> None:
        """Takes the inputs, in whatever form it computes with; not timed."""

    def compute(self) -> None:
        """Computes the layer once for what was prepared last."""

    def output(self) -> torch.Tensor:
        """What was computed last: [tokens, hidden] float32."""


class Peer(NamedTuple):
    """A row of PEERS: the module that implements it, and the package that it needs."""

    module: str
    package: str  # as it is imported
    install: str  # as pip knows it
    extra_bytes: Callable[[LayerShape], int]  # RAM besides our own copy of the layer


def _kt_kernel_bytes(shape: LayerShape) -> int:
    """RAWINT4's, and AMXINT4's beside all experts' bfloat16 weights, from which it makes them."""
    return round((0.625 + 0.5 + 2) * shape.expert_weights * shape.num_experts)


PEERS = {
    "kt-kernel": Peer("peer_kt_kernel", "kt_kernel", "kt-kernel", _kt_kernel_bytes),
    "llama.cpp": Peer("peer_llama_cpp", "llama_cpp", "llama-cpp-python", lambda shape: 0),
}


def require(name: str) -> Peer:
    """The peer called `name`. Raises BadInputError, with the command that installs it."""
    peer = PEERS[name]
    if find_spec(peer.package) is None:
        raise BadInputError(f"--vs {name}: not installed; pip install {peer.install}")
    return peer


def open_peer(name: str, layer: Layer, num_threads: int, max_tokens: int) -> list[ExpertsEngine]:
    """The engines of a peer, which may offer several ways to compute the same layer.

    Raises BadInputError where the peer is absent or cannot do it.
    """
    module = import_module(f"hybrid_k2.bench.{require(name).module}")
    return module.open_engines(layer, num_threads, max_tokens)
