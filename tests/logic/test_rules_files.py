"""Rule files: the format, every mistake with file and line, and the files that ship."""

import re
from pathlib import Path

import pytest
from k2_modules import REAL_K2, TINY_K2, k2_modules

from hybrid_k2.backends.registry import BACKENDS
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.errors import RuleError
from hybrid_k2.rules import Gpu, Hardware, choose_rules, load_rules, make_plan, shipped_names
from hybrid_k2.rules.files import parse_rule_text

SERVER = Hardware(
    ram_bytes=1 << 40,
    ram_available=1 << 40,
    cpus=64,
    gpus=(Gpu("cuda:0", "Big", 96 << 30, 95 << 30),),
    huge_pages="madvise",
)
FOLDER = Path(__file__).resolve().parents[2] / "optimize_rules"


def wrong(text: str, says: str, line: int) -> None:
    """Asserts that the text is refused at `line` with a message that matches `says`."""
    with pytest.raises(RuleError) as caught:
        parse_rule_text(text.encode(), "my.yaml")
    assert str(caught.value).startswith(f"my.yaml:{line}: "), caught.value
    assert re.search(says, str(caught.value)), caught.value


def rule(match: str, replace: str) -> str:
    """A file whose one rule has `match` at line 3 and `replace` at line 4."""
    return f"rules:\n  # the rule\n  - match: {match}\n    replace: {replace}\n"


def test_a_rule_file_is_read_with_all_its_keys() -> None:
    text = "description: mine\nvram: 24GiB\nram: 512GB\nallow_disk: true\n" + rule(
        "{name: '^model', class: Linear | MLP, layers: '0,3-5'}",
        "{backend: reference, kwargs: {device: cuda}}",
    )
    rules = parse_rule_text(text.encode(), "my.yaml")
    assert (rules.description, rules.vram, rules.ram) == ("mine", 24 << 30, 512 * 10**9)
    assert rules.allow_disk and rules.default_device == "cpu" and rules.notes == ()
    (only,) = rules.rules
    assert only.line == 7 and only.classes == ("Linear", "MLP")
    assert 3 in only.layers and 2 not in only.layers
    assert only.placements["MLP"].backend == "reference"
    assert only.placements["MLP"].kwargs == {"device": "cuda:0"}


def test_a_bare_list_of_rules_is_a_rule_file() -> None:
    text = "- match: {class: Norm}\n  replace: {backend: norm, kwargs: {eps: 1e-6}}\n"
    (only,) = parse_rule_text(text.encode(), "my.yaml").rules
    assert only.placements["Norm"].kwargs == {"device": "cpu", "eps": 1e-6}


def test_a_layer_may_be_a_plain_number_and_zeros_before_it_mean_nothing() -> None:
    for written in ("8", "'8'", "08", "010-010"):
        text = rule(f"{{layers: {written}}}", "{backend: reference}")
        (only,) = parse_rule_text(text.encode(), "my.yaml").rules
        assert only.layers.highest in (8, 10)


NORM = "{class: Norm}"


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("", "empty", 1),
        ("# only a comment\n", "empty", 1),
        ("just text\n", "must be a mapping with description", 1),
        ("rulez: []\n", "unknown key 'rulez'; did you mean 'rules'", 1),
        ("vram: 24GiB\n", "no `rules:`", 1),
        ("rules: []\n", "`rules:` is empty", 1),
        ("rules: {}\n", "rules is a mapping; it must be a list", 1),
        ("rules: [a]\n", "a rule is 'a'; it must be a mapping with match, replace", 1),
        (f"vram: lots\n{rule(NORM, '{backend: norm}')}", "'lots' is not a size", 1),
        (f"ram: [1]\n{rule(NORM, '{backend: norm}')}", "is not a size", 1),
        (f"allow_disk: maybe\n{rule(NORM, '{backend: norm}')}", "must be true or false", 1),
        (f"description: 7\n{rule(NORM, '{backend: norm}')}", "must be text", 1),
        ("rules:\n  - match: {class: Norm}\n", "no `replace:`", 2),
        ("rules:\n  - replace: {backend: norm}\n", "no `match:`", 2),
        (rule("{}", "{backend: norm}"), "`match:` is empty", 3),
        (rule("", "{backend: norm}"), "match is empty; it must be a mapping", 3),
        (rule("{nmae: x}", "{backend: norm}"), "'nmae' in match; did you mean 'name'", 3),
        (rule("{class: Lineal}", "{backend: norm}"), "'Lineal'; did you mean 'Linear'", 3),
        (rule("{class: [Norm]}", "{backend: norm}"), "class is a list; it must be text", 3),
        (rule("{name: 7}", "{backend: norm}"), "name is '7'; it must be text", 3),
        (rule("{name: 'a('}", "{backend: norm}"), "bad regular expression 'a\\('", 3),
        (rule("{layers: 5-3}", "{backend: norm}"), "write 3-5", 3),
        (rule("{layers: [1, 2]}", "{backend: norm}"), "layers is a list", 3),
        (rule("{layers: all}", "{backend: norm}"), "'all' is not a layer", 3),
        (rule(NORM, "{}"), "no `backend:`", 4),
        (rule(NORM, "norm"), "replace is 'norm'; it must be a mapping with backend", 4),
        (rule(NORM, "{bakend: norm}"), "'bakend' in replace; did you mean 'backend'", 4),
        (rule(NORM, "{backend: nrom}"), "unknown backend 'nrom'; did you mean 'norm'", 4),
        (rule(NORM, "{backend: linear_cpu}"), "serves Linear and not Norm; use reference, norm", 4),
        (rule("{class: Linear|MLP}", "{backend: linear_gpu}"), "not MLP; use .*mlp_gpu", 4),
        (rule(NORM, "{backend: norm, kwargs: {divice: cpu}}"), "did you mean 'device'", 4),
        (rule(NORM, "{backend: norm, kwargs: {device: tpu}}"), "is not cpu, cuda or cuda:N", 4),
        (rule(NORM, "{backend: norm, kwargs: {eps: tiny}}"), "'tiny' is not a float", 4),
        (rule(NORM, "{backend: norm, kwargs: {eps: [1]}}"), "eps is a list", 4),
        (rule(NORM, "{backend: norm, kwargs: {eps: }}"), "eps is empty", 4),
        (rule(NORM, "{backend: norm}") + "rules: []\n", "'rules' again; it is at line 1", 5),
        (rule("{class: Norm, class: MLP}", "{backend: norm}"), "'class' again", 3),
        (rule("{class: Norm", "{backend: norm}"), "expected ',' or '}'", 4),
        ("rules:\n\t- match: {}\n", "cannot start any token", 2),
        (rule("{name: 2001-01-01}", "{backend: norm}"), "reads as a timestamp; quote it", 3),
        (rule("{[a]: b}", "{backend: norm}"), "key must be a plain word", 3),
        (rule(NORM, "{backend: norm}") + "---\na: b\n", "another document", 5),
    ],
)
def test_every_mistake_is_an_error_with_file_and_line(text: str, says: str, line: int) -> None:
    wrong(text, says, line)


def test_the_line_is_that_of_the_value_where_a_rule_spans_many() -> None:
    text = (
        "rules:\n"
        "  - match:\n"
        "      class: Attention\n"
        "    replace:\n"
        "      backend: attention\n"
        "      kwargs:\n"
        "        device: cpu\n"
        "        kv_dtype: int4\n"
    )
    wrong(text, "one of float32, bfloat16, float16", 8)


def test_the_line_is_that_of_the_key_where_its_value_starts_below() -> None:
    wrong("rules:\n  - match:\n\n      {}\n    replace: {backend: norm}\n", "is empty", 2)


def test_a_missing_file_is_answered_with_the_names_that_ship(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="no such rule file; did you mean '1gpu-24gb'"):
        load_rules(tmp_path / "1gpu-24g.yaml")


def test_a_directory_is_no_rule_file(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="a directory"):
        load_rules(tmp_path)


def test_a_path_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.yaml").write_text(rule(NORM, "{backend: norm}"))
    monkeypatch.chdir(tmp_path)
    assert len(load_rules("cpu.yaml").rules) == 1
    assert len(load_rules("cpu").rules) > 1


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ([], "cpu"),
        ([8], "cpu"),
        ([23], "1gpu-24gb"),
        ([31], "1gpu-24gb"),
        ([47], "1gpu-48gb"),
        ([94], "1gpu-96gb"),
        ([139, 8], "1gpu-96gb"),
    ],
)
def test_auto_takes_the_file_for_the_free_memory_of_the_first_gpu(
    free: list[int], expected: str
) -> None:
    gpus = tuple(Gpu(f"cuda:{i}", "Fake", gib << 30, gib << 30) for i, gib in enumerate(free))
    hardware = Hardware(1 << 40, 1 << 40, 8, gpus)
    assert choose_rules(hardware) == expected
    assert load_rules("auto", hardware).file == f"{expected}.yaml"


def test_the_four_files_of_the_readme_ship() -> None:
    assert shipped_names() == ["1gpu-24gb", "1gpu-48gb", "1gpu-96gb", "cpu"]


@pytest.mark.parametrize("name", shipped_names())
@pytest.mark.parametrize("config", [REAL_K2, TINY_K2], ids=["real", "tiny"])
@pytest.mark.parametrize("has_kv_b", [False, True])
def test_every_shipped_file_resolves_and_serves(name: str, config, has_kv_b: bool) -> None:
    modules = k2_modules(config, has_kv_b=has_kv_b)
    plan = make_plan(modules, config, load_rules(name), RuntimeConfig(), SERVER)
    assert [entry.module for entry in plan.entries] == modules
    for entry in plan.entries:
        assert entry.module.module_class in BACKENDS[entry.backend].serves
        assert BACKENDS[entry.backend].resolve_kwargs(entry.kwargs) == dict(entry.kwargs)
        if name != "cpu":
            assert entry.rule_line > 0, f"{entry.module.name} is left to the default"
    assert not plan.notes


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_file_is_short_and_says_what_it_is_for(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 100
    assert lines[0].startswith("# ")
    assert load_rules(name).description
    assert f"`{name}`" in (FOLDER / "README.md").read_text(encoding="utf-8")
