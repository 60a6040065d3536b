"""Which rule places which module: the first that matches, and no rule may be useless.

Owns the order of rules and the errors that need the model to see: a rule that matches nothing, one
that earlier rules shadow, a layer the model does not have, a backend on a class it cannot serve.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybrid_k2.backends.registry import default_placement, find_backend
from hybrid_k2.errors import BadInputError, RuleError
from hybrid_k2.rules.patterns import SECONDS
from hybrid_k2.rules.schema import Placement, Rule, RuleSet

if TYPE_CHECKING:
    from hybrid_k2.checkpoint.modules import ModuleSpec


@dataclass(frozen=True, slots=True)
class Assignment:
    """A module, what it runs on, and the line of the rule that said so; 0 for the default."""

    module: ModuleSpec
    placement: Placement
    rule_line: int


def assign(
    rules: RuleSet, modules: Sequence[ModuleSpec], num_layers: int
) -> tuple[list[Assignment], list[str]]:
    """Places every module; returns the assignments in the modules' order, and notes.

    Raises RuleError, naming the line, for a rule that can have no effect on this model.
    """
    deadline = time.perf_counter() + SECONDS
    takers: list[Rule | None] = [None] * len(modules)
    notes = []
    for rule in rules.rules:
        where = f"{rules.file}:{rule.line}: "
        if rule.layers is not None and rule.layers.highest >= num_layers:
            raise RuleError(
                f"{where}layer {rule.layers.highest} is beyond the model's {num_layers} layers "
                f'(0-{num_layers - 1}); "N-" means from N to the last'
            )
        try:
            matched = _matched(rule, modules, deadline)
            problem = _useless(rule, matched, takers, modules, deadline)
        except BadInputError as error:
            raise RuleError(f"{where}{error}") from None
        if problem and rule.is_strict:
            raise RuleError(f"{where}{problem}")
        if problem:
            notes.append(f"{where}{problem}")
        for index in matched:
            takers[index] = takers[index] or rule
    return [
        _assignment(rules, module, taker) for module, taker in zip(modules, takers, strict=True)
    ], notes


def _matched(rule: Rule, modules: Sequence[ModuleSpec], deadline: float) -> list[int]:
    """Indices of the modules that satisfy every condition of the rule."""
    indices = [
        index
        for index, module in enumerate(modules)
        if (not rule.classes or module.module_class in rule.classes)
        and (rule.layers is None or module.layer_idx in rule.layers)
    ]
    if rule.name is None:
        return indices
    hits = rule.name.search(_names(rule, [modules[index] for index in indices]), deadline)
    return [index for index, hit in zip(indices, hits, strict=True) if hit]


def _names(rule: Rule, modules: Sequence[ModuleSpec]) -> list[str]:
    return [module.name + rule.suffixes.get(module.module_class, "") for module in modules]


def _assignment(rules: RuleSet, module: ModuleSpec, rule: Rule | None) -> Assignment:
    module_class = module.module_class
    if rule is None:
        placement = Placement(*default_placement(module_class, rules.default_device))
        return Assignment(module, placement, 0)
    if module_class not in rule.placements:
        backend = next(iter(rule.placements.values())).backend
        try:
            find_backend(backend, module_class)
        except BadInputError as error:
            raise RuleError(
                f"{rules.file}:{rule.line}: the rule matches {module.name} ({module_class}), but "
                f"{error}; or add `class:` to `match:`"
            ) from None
    return Assignment(module, rule.placements[module_class], rule.line)


def _useless(
    rule: Rule,
    matched: list[int],
    takers: list[Rule | None],
    modules: Sequence[ModuleSpec],
    deadline: float,
) -> str:
    """Why the rule has no effect; empty where it has one."""
    if not matched:
        return f"the rule matches nothing: {_counts(rule, modules, deadline)}"
    earlier = {taker.line for index in matched if (taker := takers[index])}
    if all(takers[index] for index in matched):
        lines = ", ".join(map(str, sorted(earlier)))
        which = f"all {len(matched)} modules" if len(matched) > 1 else "the only module"
        return (
            f"the rule never applies: {which} it matches went to the "
            f"rule{'s' if len(earlier) > 1 else ''} at line {lines}; move it up or delete it"
        )
    return ""


def _counts(rule: Rule, modules: Sequence[ModuleSpec], deadline: float) -> str:
    """How many modules each condition alone allows: the one that says 0 is the mistake."""
    parts = []
    if rule.name is not None:
        hits = sum(rule.name.search(_names(rule, modules), deadline))
        parts.append(f"name {rule.name.text[:60]!r} fits {hits}")
    if rule.classes:
        hits = sum(module.module_class in rule.classes for module in modules)
        parts.append(f"class {'|'.join(rule.classes)} fits {hits}")
    if rule.layers is not None:
        hits = sum(module.layer_idx in rule.layers for module in modules)
        parts.append(f"layers fit {hits}")
    return f"of {len(modules)} modules, {', '.join(parts)}; `hybrid-k2 plan` lists their names"
