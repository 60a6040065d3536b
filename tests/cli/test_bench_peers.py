"""Peers of `hybrid-k2 bench experts`: they compute the layer that we compute, and are timed beside
us; one that is absent is named with the command that installs it.
"""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hybrid_k2.backends import registry
from hybrid_k2.bench import peers
from hybrid_k2.cli.main import cli
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.quant import by_name

if registry.cpu_extension() is None:
    pytest.skip("hybrid_k2._cpu is not built", allow_module_level=True)

from hybrid_k2 import _cpu
from hybrid_k2.backends.cpu_kernels import NativeKernels
from hybrid_k2.bench import experts
from hybrid_k2.bench.layer import Layer, LayerShape, random_inputs, synthetic_layer
from hybrid_k2.bench.peer_kt_kernel import pack_int4

SHAPE = LayerShape(hidden_size=512, width=256, num_experts=8, experts_per_token=2)
SMALL = ["bench", "experts", "--experts", "8", "--seconds", "0.01", "--batch", "1"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def ours(layer: Layer) -> experts.HybridK2:
    return experts.HybridK2(layer, NativeKernels(_cpu, RuntimeConfig(num_threads=2)), 2)


def distance(engine: peers.ExpertsEngine, layer: Layer, rng: np.random.Generator) -> float:
    """The largest relative distance from our outputs over batches that grow and shrink."""
    reference, largest = ours(layer), 0.0
    for num_tokens in (3, 1, 20):
        inputs = random_inputs(rng, num_tokens, layer.shape)
        for each in (reference, engine):
            each.prepare(inputs)
            each.compute()
        y, exact = engine.output(), reference.output()
        largest = max(largest, float((y - exact).norm() / exact.norm()))
    return largest


@pytest.mark.parametrize("quant", ["Q4_K", "Q4_0", "IQ3_XXS", "Q8_0"])
def test_llama_cpp_computes_the_same_layer_from_the_same_bytes(rng, quant):
    pytest.importorskip("llama_cpp")
    layer = synthetic_layer(rng, quant, SHAPE, huge_pages=False)
    (engine,) = peers.open_peer("llama.cpp", layer, 2, 20)
    # Both round activations to 8 bits: 1.3 % in blocks of 32, 2 % in those of 256 of llama.cpp.
    assert distance(engine, layer, rng) < 0.033
    assert engine.expert_bytes == by_name(quant).num_bytes(SHAPE.expert_weights)


def test_kt_kernel_computes_the_layer_as_far_as_four_bits_go(rng):
    pytest.importorskip("kt_kernel")
    layer = synthetic_layer(rng, "Q8_0", SHAPE, huge_pages=False)
    engines = peers.open_peer("kt-kernel", layer, 2, 20)
    assert {engine.quant for engine in engines} == {"AMXINT4", "RAWINT4"}
    for engine in engines:
        # Steps of 1/7 of the largest of uniform weights, in three products: 12 %.
        assert distance(engine, layer, rng) < 0.2
        assert engine.threads == 1


def test_four_bit_words_hold_eight_codes_from_the_lowest_bits_up():
    scale = 0.5
    codes = torch.arange(-7, 8).repeat(5)[:64].reshape(2, 32)  # both rows have a 7 or a -7
    words, scales = pack_int4(codes * scale)
    assert scales.dtype == torch.bfloat16 and torch.equal(
        scales, torch.full((2, 1), scale).bfloat16()
    )
    for r in range(2):
        for i in range(32):
            assert (int(words[r, i // 8]) >> 4 * (i % 8) & 15) - 8 == codes[r, i]


@pytest.mark.parametrize("name", peers.PEERS)
def test_an_absent_peer_is_named_with_the_command_that_installs_it(monkeypatch, name):
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    result = CliRunner().invoke(cli, [*SMALL, "--vs", name])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert name in line and f"pip install {peers.PEERS[name].install}" in line


def test_an_unknown_peer_is_refused_with_those_there_are():
    result = CliRunner().invoke(cli, [*SMALL, "--vs", "vllm"])
    assert result.exit_code == 2
    assert all(name in result.stderr for name in peers.PEERS)


class Idle:
    """An engine that takes no time."""

    quant, tier, threads, expert_bytes = "none", "idle", 1, 5

    def prepare(self, inputs) -> None:
        pass

    def compute(self) -> None:
        pass


def test_a_peers_row_follows_ours_with_its_time_over_ours(monkeypatch):
    monkeypatch.setattr(experts, "open_peer", lambda *arguments: [Idle()])
    monkeypatch.setattr(experts, "SETTLE_S", 0)
    monkeypatch.setattr(experts, "BANDWIDTH_BYTES", 1 << 24)
    runtime = RuntimeConfig(num_threads=1)
    rows = list(experts.measure_experts("Q4_0", [1, 2], SHAPE, runtime, peers=["idle"], seconds=0))
    assert [(row.engine, row.tokens) for row in rows] == [
        ("hybrid-k2", 1),
        ("idle", 1),
        ("hybrid-k2", 2),
        ("idle", 2),
    ]
    for mine, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert mine.ratio == 1 and 0 < theirs.ratio < 0.5
        assert mine.runs == theirs.runs >= 3
        assert theirs.bytes_read * mine.bytes_read > 0
        assert theirs.bytes_read / mine.bytes_read == pytest.approx(
            Idle.expert_bytes / by_name("Q4_0").num_bytes(SHAPE.expert_weights)
        )


@pytest.mark.slow
def test_json_of_the_command_has_a_line_for_each_engine():
    pytest.importorskip("llama_cpp")
    result = CliRunner().invoke(cli, [*SMALL, "--vs", "llama.cpp", "--threads", "2", "--json"])
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["engine"] for row in rows] == ["hybrid-k2", "llama.cpp"]
    assert rows[0]["bytes_read"] == rows[1]["bytes_read"]
    assert rows[1]["ratio"] > 0
