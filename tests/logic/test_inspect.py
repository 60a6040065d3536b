"""`hybrid-k2 inspect`: the report of sound files, and what it says of wrong ones."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf_factory import k_quant_config, tiny_config, write_tiny_k2
from text_factory import gguf_metadata, small_vocabulary, write_directory

from hybrid_k2.cli.main import cli


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


def facts(*arguments: object) -> dict:
    result = inspect(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_demo_model_is_sound_and_complete() -> None:
    result = inspect("--check")
    assert result.exit_code == 0, result.output
    assert "every weight is a finite number" in result.stdout
    assert "note:" not in result.stdout


def test_the_report_adds_up_to_the_file(tmp_path: Path) -> None:
    quants = {"experts": "Q4_K", "blk.2.ffn_down_exps": "Q6_K", "default": "Q8_0"}
    model = write_tiny_k2(tmp_path / "k2.gguf", k_quant_config(), quants=quants)
    report = facts(model.path)
    theirs = gguf.GGUFReader(model.path).tensors
    assert report["bytes"] == sum(int(tensor.n_bytes) for tensor in theirs)
    assert report["weights"] == sum(int(tensor.n_elements) for tensor in theirs)
    assert sum(row["bytes"] for row in report["types"]) == report["bytes"]
    assert sum(row["tensors"] for row in report["types"]) == len(theirs)
    down = [row for row in report["types"] if row["role"] == "mlp.experts.down_proj"]
    assert {row["type"]: row["tensors"] for row in down} == {"Q4_K": 1, "Q6_K": 1}
    assert report["config"]["num_hidden_layers"] == 3
    assert report["yarn"]["beta_fast"] == 1.0
    assert report["bytes_per_token"] < report["bytes"]


def test_the_table_has_a_row_for_every_role_and_type(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf", quants={"experts": "Q4_0"})
    lines = inspect(model.path).stdout.splitlines()
    assert lines[0] == "Tiny K2 (deepseek2)"
    rows = [line.split()[:3] for line in lines]
    assert ["mlp.experts.up_proj", "Q4_0", "2"] in rows
    assert ["norms", "F32", str(4 * 3 + 1)] in rows
    assert ["lm_head", "F32", "1"] in rows


def test_the_tokenizer_and_template_of_the_file_are_shown(tmp_path: Path) -> None:
    template = "\n{%- if tools -%}{{ tools }}"
    tokenizer = gguf_metadata(small_vocabulary(template=template))
    model = write_tiny_k2(tmp_path / "k2.gguf", tokenizer=tokenizer)
    report = facts(model.path)["tokenizer"]
    assert (report["source"], report["model"], report["pre"]) == ("GGUF", "gpt2", "kimi-k2")
    assert report["vocab_size"] == model.config.vocab_size
    assert {"<|im_end|>", "[EOS]"} <= set(report["end_tokens"].values())
    assert report["template"] == "instruct"
    assert report["template_first_line"] == template.strip()
    assert "instruct: {%- if tools" in inspect(model.path).stdout


def test_a_file_without_a_tokenizer_says_how_to_give_one(tmp_path: Path) -> None:
    vocabulary = small_vocabulary()
    config = tiny_config(vocab_size=vocabulary.size)
    model = write_tiny_k2(tmp_path / "k2.gguf", config)
    assert "--model-path" in inspect(model.path).stdout
    directory = write_directory(vocabulary, tmp_path / "hf")
    report = facts(model.path, "--model-path", directory)
    assert report["tokenizer"]["source"] == str(directory)
    assert report["notes"] == []


def test_a_tokenizer_of_another_size_is_noted(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf")
    directory = write_directory(small_vocabulary(), tmp_path / "hf")
    (note,) = facts(model.path, "--model-path", directory)["notes"]
    assert note == f"the tokenizer has {small_vocabulary().size} tokens, the model 320"


def test_missing_betas_and_unused_tensors_are_noted(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        del writer.kv_data[0]["deepseek2.rope.scaling.yarn_beta_fast"]
        writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))

    result = inspect(write_tiny_k2(tmp_path / "k2.gguf", edit=edit).path)
    assert "no YaRN betas; 1/1 are used" in result.stdout
    assert "not used: rope_freqs.weight" in result.stdout


def test_the_parts_of_a_split_set_are_listed(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf", split_max_tensors=20)
    parts = sorted(map(str, tmp_path.iterdir()))
    assert facts(tmp_path)["files"] == parts
    assert f"and {len(parts) - 1} more parts" in inspect(model.path).stdout


def test_check_names_every_tensor_with_nan(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.tensors[0]["blk.1.attn_norm.weight"].tensor[12:16] = 0xFF
        writer.tensors[0]["blk.2.ffn_down_exps.weight"].tensor[0, 0, :2] = 0xFF

    path = write_tiny_k2(tmp_path / "k2.gguf", quants={"experts": "Q4_0"}, edit=edit).path
    assert inspect(path).exit_code == 0
    result = inspect(path, "--check")
    assert result.exit_code == 2
    for name in ("layers.1.input_layernorm.weight", "layers.2.mlp.experts.down_proj.weight"):
        assert name in result.stderr
    assert json.loads(inspect(path, "--check", "--json").stdout)["non_finite"] != []


@pytest.mark.parametrize(
    ("type_or_architecture", "shown", "said"),
    [(144, "IQ4_KS", "ik_llama.cpp-only"), ("llama", "architecture  llama", "architecture is")],
)
def test_a_sound_file_that_is_refused_is_described_all_the_same(
    tmp_path: Path, type_or_architecture: int | str, shown: str, said: str
) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        if isinstance(type_or_architecture, int):
            writer.tensors[0]["blk.1.ffn_up_exps.weight"].dtype = type_or_architecture
        else:
            writer.kv_data[0]["general.architecture"].value = type_or_architecture

    result = inspect(write_tiny_k2(tmp_path / "k2.gguf", edit=edit).path)
    assert result.exit_code == 2
    assert shown in result.stdout
    assert said in result.stderr and "Traceback" not in result.output


def test_a_file_that_is_no_model_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("not a model")
    for path in (tmp_path / "notes.gguf", tmp_path / "absent.gguf"):
        result = inspect(path)
        assert result.exit_code == 2 and result.stdout == ""
        assert result.stderr.startswith("error: ") and path.name in result.stderr
        assert result.stderr.count("\n") == 1
    assert inspect("a.gguf", "--gguf-path", "b.gguf").exit_code == 2
