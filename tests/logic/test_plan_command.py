"""`hybrid-k2 plan` as a user calls it, on the demo model: output, JSON, errors and exit codes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hybrid_k2.cli.main import cli


def plan(*arguments: str) -> Result:
    """Runs `hybrid-k2 plan` with those arguments."""
    return CliRunner().invoke(cli, ["plan", *arguments])


def test_without_a_model_the_demo_models_plan_is_shown() -> None:
    result = plan("--rules", "cpu")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["modules", "backend", "stored", "as", "bytes", "rule"]
    assert any(line.startswith("lm_head ") and "cpu.yaml:" in line for line in lines)
    assert any(line.startswith("RAM ") for line in lines)


def test_json_is_one_document_on_stdout() -> None:
    result = plan("--rules", "1gpu-24gb", "--assume-vram", "24GiB", "--context", "100", "--json")
    data = json.loads(result.stdout)
    assert data["schema_version"] == 1 and data["context"] == 100
    assert data["limits"]["vram"] == {"cuda:0": 24 << 30}
    assert {m["kwargs"].get("device") for m in data["modules"]} == {"cuda:0"}


def test_a_machine_to_be_bought_replaces_this_one() -> None:
    arguments = ("--assume-ram", "2TB", "--assume-vram", "8GiB", "--assume-vram", "48GiB")
    result = plan("--rules", "cpu", *arguments, "--ram-bandwidth", "200", "--json")
    data = json.loads(result.stdout)
    assert data["limits"] == {"ram": 2 * 10**12, "vram": {"cuda:0": 8 << 30, "cuda:1": 48 << 30}}
    reads = data["totals"]["reads_per_token"]["cpu"]
    assert data["decode_ceiling_tokens_per_s"] == pytest.approx(200e9 / reads)


def test_a_model_larger_than_ram_is_refused_unless_disk_is_allowed() -> None:
    totals = json.loads(plan("--rules", "cpu", "--context", "16", "--json").stdout)["totals"]
    ram = str(totals["ram"] + totals["mapped"] // 2)
    refused = plan("--rules", "cpu", "--context", "16", "--assume-ram", ram)
    assert refused.exit_code == 2
    assert refused.stdout == "" and "--allow-disk" in refused.stderr
    allowed = plan("--rules", "cpu", "--context", "16", "--assume-ram", ram, "--allow-disk")
    assert allowed.exit_code == 0
    assert "note: weights of" in allowed.stdout and "from disk none" not in allowed.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rules", "1gpu-24g"], "did you mean '1gpu-24gb'"),
        (["--rules", "nowhere/my.yaml"], "nowhere/my.yaml: no such rule file"),
        (["no-such-model.gguf", "--rules", "cpu"], "no-such-model.gguf"),
        (["--assume-ram", "lots"], "'lots' is not a size"),
        (["--context", "-5"], "context is -5"),
        (["a.gguf", "--gguf-path", "b.gguf"], "not both"),
    ],
)
def test_a_wrong_option_ends_with_code_2_and_one_message(arguments: list[str], says: str) -> None:
    result = plan(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr and "Traceback" not in result.stderr


def test_a_mistake_in_a_rule_file_is_reported_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rules:\n  - match: {class: Norm}\n    replace: {backend: nrom}\n")
    result = plan("--rules", str(path))
    assert result.exit_code == 2
    assert f"error: {path}:3: unknown backend 'nrom'; did you mean 'norm'" in result.stderr


def test_the_help_has_examples_that_are_options_of_the_command() -> None:
    text = plan("--help").stdout
    examples = [line for line in text.splitlines() if line.strip().startswith("hybrid-k2 plan")]
    assert len(examples) >= 3
    options = {word for line in examples for word in line.split() if word.startswith("--")}
    assert options <= set(text.split("Examples:")[0].split())
