"""Which rule places which module: first match wins, and a rule without effect is an error."""

import re

import pytest
from k2_modules import TINY_K2, k2_modules

from hybrid_k2.errors import RuleError
from hybrid_k2.rules.files import parse_rule_text
from hybrid_k2.rules.matching import Assignment, assign

MODULES = k2_modules(TINY_K2)


def place(text: str) -> dict[str, Assignment]:
    """Assignments of the tiny K2's modules by name."""
    assignments, notes = assign(
        parse_rule_text(text.encode(), "my.yaml"), MODULES, TINY_K2.num_hidden_layers
    )
    assert notes == []
    return {assignment.module.name: assignment for assignment in assignments}


def test_a_module_that_no_rule_matches_gets_the_default_of_its_class() -> None:
    placed = place("- match: {class: Norm}\n  replace: {backend: reference}\n")
    assert placed["model.norm"].placement.backend == "reference"
    assert placed["lm_head"].placement.backend == "linear_cpu"
    assert (placed["model.norm"].rule_line, placed["lm_head"].rule_line) == (1, 0)


def test_the_first_rule_that_matches_wins() -> None:
    placed = place(
        "- match: {class: Linear, layers: 0-1}\n  replace: {backend: reference}\n"
        "- match: {class: Linear}\n  replace: {backend: linear_cpu}\n"
    )
    assert placed["model.layers.1.self_attn.q_proj"].rule_line == 1
    assert placed["model.layers.2.self_attn.q_proj"].rule_line == 3
    assert placed["lm_head"].rule_line == 3


def test_all_conditions_of_a_rule_must_hold() -> None:
    placed = place(
        "- match: {name: o_proj$, class: Linear, layers: 2-}\n  replace: {backend: reference}\n"
    )
    hits = [name for name, assignment in placed.items() if assignment.rule_line]
    assert hits == ["model.layers.2.self_attn.o_proj", "model.layers.3.self_attn.o_proj"]


def test_a_name_is_searched_not_matched_as_a_whole() -> None:
    placed = place("- match: {name: norm}\n  replace: {backend: norm, kwargs: {eps: 1.0e-5}}\n")
    assert all(
        (assignment.rule_line == 1) == (assignment.module.module_class == "Norm")
        for assignment in placed.values()
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "- match: {name: ^layers}\n  replace: {backend: norm}\n",
            "my.yaml:1: the rule matches nothing: of 41 modules, name '\\^layers' fits 0",
        ),
        (
            "- match: {class: Linear, layers: 0, name: lm_head}\n"
            "  replace: {backend: linear_cpu}\n",
            "name 'lm_head' fits 1, class Linear fits 13, layers fit",
        ),
        (
            "- match: {class: Linear}\n  replace: {backend: linear_cpu}\n"
            "- match: {class: MLP}\n  replace: {backend: mlp_cpu}\n"
            "- match: {name: lm_head}\n  replace: {backend: linear_gpu}\n",
            "my.yaml:5: the rule never applies: the only module .* rule at line 1; move it up",
        ),
        (
            "- match: {layers: 0-1}\n  replace: {backend: reference}\n"
            "- match: {layers: 2-3}\n  replace: {backend: reference}\n"
            "- match: {class: Attention}\n  replace: {backend: attention}\n",
            "my.yaml:5: .* rules at line 1, 3",
        ),
        (
            "- match: {layers: 1-4}\n  replace: {backend: reference}\n",
            "my.yaml:1: layer 4 is beyond the model's 4 layers \\(0-3\\)",
        ),
        (
            "- match: {name: ^model}\n  replace: {backend: linear_cpu}\n",
            "my.yaml:1: the rule matches model.embed_tokens \\(Embedding\\), but .*add `class:`",
        ),
    ],
)
def test_a_rule_that_cannot_do_what_it_says_is_an_error(text: str, says: str) -> None:
    with pytest.raises(RuleError) as caught:
        place(text)
    assert re.search(says, str(caught.value)), caught.value


def test_a_rule_shadowed_in_part_still_applies_to_the_rest() -> None:
    placed = place(
        "- match: {layers: 0-2}\n  replace: {backend: reference}\n"
        "- match: {class: Experts}\n  replace: {backend: experts_cpu}\n"
    )
    assert placed["model.layers.3.mlp.experts"].rule_line == 3
