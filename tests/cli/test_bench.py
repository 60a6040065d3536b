"""`hybrid-k2 bench experts` on a few experts: complete rows, plausible figures, clear refusals."""

import json

import pytest
from click.testing import CliRunner

from hybrid_k2.backends import registry
from hybrid_k2.cli.main import cli

pytestmark = pytest.mark.skipif(
    registry.cpu_extension() is None, reason="hybrid_k2._cpu is not built"
)
SMALL = ["bench", "experts", "--experts", "8", "--seconds", "0.01"]


def run(*arguments: str):
    return CliRunner().invoke(cli, [*SMALL, *arguments])


@pytest.mark.slow
def test_a_row_says_what_was_read_and_what_the_machine_can_read():
    result = run("--quant", "Q4_K", "--batch", "1", "--batch", "2", "--threads", "1", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["tokens"] for row in rows] == [1, 2]
    for row in rows:
        # 8 experts exist and 8 are chosen, so every token uses all: 3 x 7168 x 2048 at 4.5 bits.
        assert row["bytes_read"] == 8 * 24_772_608
        assert row["gb_s"] == pytest.approx(row["bytes_read"] / row["median_ms"] / 1e6)
        assert row["share"] == pytest.approx(row["gb_s"] / row["read_gb_s"])
        assert 0 < row["min_ms"] <= row["median_ms"] and row["threads"] == 1


def test_a_type_without_kernels_is_named_with_those_that_have_one():
    result = run("--quant", "Q3_X")
    assert result.exit_code == 2
    assert "Q3_X" in result.stderr and "Q4_K" in result.stderr


def test_a_layer_larger_than_memory_is_refused_at_once(monkeypatch):
    import hybrid_k2.rules

    class Small:
        ram_available = 1 << 20

    monkeypatch.setattr(hybrid_k2.rules, "probe_hardware", lambda: Small)
    result = run("--quant", "Q4_K")
    assert result.exit_code == 2
    assert "0.2 GB" in result.stderr and "--experts" in result.stderr
