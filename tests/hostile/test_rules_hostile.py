"""Rule files made to hang, to fill memory or to crash: a RuleError with file and line, quickly."""

import time
from pathlib import Path

import pytest
from k2_modules import REAL_K2, k2_modules

from hybrid_k2.config import RuntimeConfig
from hybrid_k2.errors import RuleError
from hybrid_k2.rules import Hardware, load_rules, make_plan
from hybrid_k2.rules.files import parse_rule_text

MODULES = k2_modules(REAL_K2)
HARDWARE = Hardware(ram_bytes=1 << 40, ram_available=1 << 40, cpus=8)
SECONDS = 3.0  # of CPU time, which a busy machine does not stretch; patterns may take one


def refuse(text: str | bytes) -> str:
    """The message with which the text is refused, found within the time allowed."""
    data = text.encode() if isinstance(text, str) else text
    start = time.process_time()
    with pytest.raises(RuleError) as caught:
        rules = parse_rule_text(data, "my.yaml")
        make_plan(MODULES, REAL_K2, rules, RuntimeConfig(), HARDWARE)
    assert time.process_time() - start < SECONDS
    message = str(caught.value)
    assert message.startswith("my.yaml:")
    assert int(message.split(":")[1]) >= 1
    assert len(message) < 1000
    return message


def rule(pattern: str) -> str:
    quoted = pattern.replace("'", "''")
    return f"- match: {{name: '{quoted}'}}\n  replace: {{backend: reference}}\n"


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+!",
        r"(.|..)+!",
        r"(\w|\w\w|\.)+!",
        r"(.*)*(.*)*(.*)*(.*)*(.*)*!",
        r"(?=(.|..)+!)model",
        "(.)?" * 100 + r"\1" * 20 + "!",
    ],
)
def test_a_pattern_that_backtracks_for_ever_is_stopped(pattern: str) -> None:
    refuse(rule(pattern))


@pytest.mark.parametrize(
    "pattern",
    [
        "a{1000000000}",
        "(((a{99}){99}){99}){99}",
        "(?:" * 80 + "a" + "+)" * 80,
        "(" * 300 + ")" * 200,
        "a" * 513,
        "(?:a{1000}){1000}",
        "[",
        "(?P<x>",
        "(?R)",
        "(?:a){e<=3}",
        "*",
        r"\p{L}+",
        "\x01(",
    ],
)
def test_a_pattern_too_expensive_to_compile_or_not_pythons_is_refused(pattern: str) -> None:
    refuse(rule(pattern) if "\x01" not in pattern else rule("(").replace("(", pattern))


def test_an_honest_pattern_with_counts_groups_and_lookahead_is_accepted() -> None:
    pattern = r"^model\.layers\.(?!0\.)([1-9]|[1-5]\d|60)\.(self_attn|mlp)\.\w{1,40}(_proj)?$"
    rules = parse_rule_text(rule(pattern).encode(), "my.yaml")
    plan = make_plan(MODULES, REAL_K2, rules, RuntimeConfig(), HARDWARE)
    assert sum(entry.rule_line == 1 for entry in plan.entries) > 300


def test_an_alias_bomb_is_refused_at_its_first_alias() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(25)
    )
    assert "my.yaml:2: alias *a is not supported" in refuse(bomb)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused_before_it_exhausts_the_stack(opening: str) -> None:
    assert "nested more than" in refuse(opening * 5000)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!set", "!mine", "!!binary"])
def test_tags_are_refused(tag: str) -> None:
    assert "tag" in refuse(f"rules: {tag} [echo]\n")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"rules:\n  - \xff\xfe\n", "my.yaml:2: not UTF-8: byte 0xff"),
        (b"rules:\n  - \x00\n", "my.yaml:2: "),
        ("rules: []\n".encode("utf-16"), "not UTF-8"),
        (b"x" * (1 << 20), "a rule file has at most"),
        (b"rules: " + b"9" * 60_000, "my.yaml:1: "),
        (b"vram: 0x" + b"f" * 60_000 + b"\nrules: [a]", "my.yaml:1: "),
        (b"rules: 1" + b":59" * 20_000, "my.yaml:1: "),
        (b"rules: 2001-99-99\n", "my.yaml:1: "),
        (b"<<: {rules: []}\n", "unknown key '<<'"),
        (b"{" * 200, "my.yaml:1: "),
        (b"%YAML 9.9\n---\nrules: []\n", "my.yaml:"),
        (b"'" + b"a" * 1000, "my.yaml:"),
        (b"k" * 60_000 + b": 1\n", "my.yaml:1: "),
        (b"? " + b"a" * 2000 + b"\n: 1\n", "unknown key 'aaaa"),
    ],
)
def test_bytes_that_are_no_rule_file_are_refused_with_their_line(data: bytes, says: str) -> None:
    assert says in refuse(data)


def test_thousands_of_rules_do_not_take_long() -> None:
    refuse("rules:\n" + "- {match: {class: Norm}, replace: {backend: norm}}\n" * 1200)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "../../../../etc", "/dev/null"])
def test_a_name_that_is_no_rule_file_is_an_error(name: str) -> None:
    with pytest.raises(RuleError):
        load_rules(name)


def test_many_slow_patterns_share_one_limit() -> None:
    slow = "(.|..){15}!|model"  # matches every name, some tens of milliseconds a layer
    text = "".join(
        f"- match: {{layers: {layer}, name: '{slow}'}}\n  replace: {{backend: reference}}\n"
        for layer in range(61)
    )
    message = refuse(text)
    assert "take over" in message
    assert int(message.split(":")[1]) > 1, "the first alone took all the time"


def test_an_endless_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    with big.open("wb") as stream:
        stream.truncate(10 << 30)
    start = time.process_time()
    with pytest.raises(RuleError, match="at most"):
        load_rules(big)
    with pytest.raises(RuleError, match="at most"):
        load_rules("/dev/zero")
    assert time.process_time() - start < SECONDS
