"""`hybrid-k2 bench step`: what is refused before any memory is taken."""

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from hybrid_k2.bench.peer_llama_step import PeerStep
from hybrid_k2.bench.step import StepResult
from hybrid_k2.cli.main import cli


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--quant", "Q4_L"), "--quant Q4_L: known are"),
        (("--dense-quant", "x"), "--dense-quant x: known are"),
        (("--vram", "24XB"), "--vram: '24XB' is not a size"),
        (("--device", "cuda:9"), "--device cuda:9: "),
        (("--layers", "64"), "--layers 64: their Q4_K experts take 608.8 GB and "),
        (("--experts", "experts_gpux"), "unknown backend 'experts_gpux'"),
        (("--device", "cpu", "--gpu-experts", "4"), "has no kwarg 'gpu_experts'"),
        (("--device", "cpu", "--no-over-bus"), "has no kwarg 'over_bus'"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_known(arguments, says):
    result = CliRunner().invoke(cli, ["bench", "step", *arguments])
    assert result.exit_code != 0
    assert says in f"{result.output}{result.exception}"


def test_help_names_every_column():
    text = CliRunner().invoke(cli, ["bench", "step", "--help"]).output
    assert "EXTRAPOLATED to all 61" in " ".join(text.split()) and "--gpu-experts" in text


@pytest.mark.parametrize(
    ("arguments", "context"), [((), 2048), (("--context", "9"), 9), (("--tokens", "8192"), 8192)]
)
def test_there_is_room_for_the_longest_context_or_prompt(monkeypatch, arguments, context):
    asked = []

    def measure_steps(placement, runtime, **_):
        asked.append(runtime.context)
        return []

    monkeypatch.setattr("hybrid_k2.bench.step.measure_steps", measure_steps)
    monkeypatch.setattr("hybrid_k2.bench.synthetic_model.experts_bytes", lambda *_: 1)
    result = CliRunner().invoke(cli, ["bench", "step", "--device", "cpu", *arguments])
    assert result.exit_code == 0, result.output
    assert asked == [context + 1]


def test_beside_llama_cpp_each_row_says_how_many_times_as_fast(monkeypatch):
    ours = StepResult(
        "decode", 2, 2048, 1, 9, 2.0, 0.5, 0.0, 1.5, 0.0, None, 1.0, 8.0, 1e8, 0, 100, None
    )
    asked = []

    def measure_llama_cpp(request):
        asked.append((request.num_moe_layers, request.contexts, request.prompts))
        return [PeerStep("decode", 2048, 1, 9, 4.0, 4.0)]

    monkeypatch.setattr("hybrid_k2.bench.step.measure_steps", lambda *_, **__: [ours])
    monkeypatch.setattr("hybrid_k2.bench.peer_llama_step.measure_llama_cpp", measure_llama_cpp)
    monkeypatch.setattr("hybrid_k2.bench.synthetic_model.experts_bytes", lambda *_: 1)
    arguments = ["bench", "step", "--device", "cpu", "--layers", "2", "--vs", "llama.cpp"]
    text = CliRunner().invoke(cli, arguments).output
    assert "llama.cpp: 4.000 ms, 4.0 tok/s*; ours 2.00 times" in text
    row = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)
    assert row["ratio"] == 2.0 and row["llama_cpp"]["layer_ms"] == 4.0
    assert asked == [(2, (2048,), ())] * 2
