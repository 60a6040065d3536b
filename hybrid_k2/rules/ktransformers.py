"""KTransformers' rule files for DeepSeek-V3 and Kimi K2 -> our RuleSet.

Owns the table of their class names. Their files replace torch modules, ours place parts of K2, so
some of their rules have nothing to say here: each of those leaves a note and not an error, and so
does a rule that matches nothing (their files serve several models). What could put a module
somewhere else than the file says is an error. Unmatched modules go to cuda:0, as theirs do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybrid_k2.backends.registry import BACKENDS, MODULE_CLASSES, default_placement, did_you_mean
from hybrid_k2.rules.patterns import NamePattern
from hybrid_k2.rules.schema import Placement, Reader, Rule, RuleSet
from hybrid_k2.rules.yaml_lines import Node

# Their Linear layers include the three of an MLP, which is one module here, named one level up.
_SUFFIXES = {"MLP": ".gate_proj"}
_LINEAR = ("Linear", "MLP")

# `match: class:` by the last part of its import path, DeepseekV2/DeepseekV3 taken off.
_MATCH_CLASSES = {
    "Linear": _LINEAR,
    "Embedding": ("Embedding",),
    "Attention": ("Attention",),
    "MoEGate": ("Router",),
    "RMSNorm": ("Norm",),
    "MoE": (),
    "MLP": (),
    "Model": (),
    "RotaryEmbedding": (),
    "YarnRotaryEmbedding": (),
}

# `replace: class:` by the last part of its import path: the classes it places here.
_REPLACE_CLASSES = {
    "default": MODULE_CLASSES,
    "KTransformersLinear": _LINEAR,
    "KTransformersExperts": ("Experts",),
    "KTransformersExpertsV2": ("Experts",),
    "KDeepseekV2Attention": ("Attention",),
    "flashinfer_attn": ("Attention",),
    "KMoEGate": ("Router",),
    "RMSNorm": ("Norm",),
    "KDeepseekV3MoE": (),
    "KDeepseekV3MoEV2": (),
    "kDeepseekV3MLP": (),
    "KDeepseekV2Model": (),
    "RotaryEmbedding": (),
    "RotaryEmbeddingV3": (),
    "RotaryEmbeddingV4": (),
    "YarnRotaryEmbedding": (),
    "YarnRotaryEmbeddingV3": (),
}
_WHY_IGNORED = "hybrid-k2 has no separate module for it"

_DEVICES = {"cpu": "cpu", "cuda": "cuda:0"}
_BFLOAT16_OPS = ("KLinearTorch",)
_CPU_LINEAR_OPS = ("KLinearCPUInfer",)


@dataclass(frozen=True, slots=True)
class _Item:
    """One rule of theirs, checked but not yet translated."""

    node: Node
    match: Mapping[str, Node]
    replace: Mapping[str, Node]
    kwargs: Mapping[str, Node]


def is_ktransformers(root: Node) -> bool:
    """True for a bare list in which some `replace:` has an import path or their device kwargs."""
    if not isinstance(root.value, list):
        return False
    for item in root.value:
        replace = item.value.get("replace") if isinstance(item.value, dict) else None
        if replace is None or not isinstance(replace.value, dict) or "backend" in replace.value:
            continue
        kwargs = replace.value.get("kwargs")
        names = kwargs.value if kwargs and isinstance(kwargs.value, dict) else {}
        class_node = replace.value.get("class")
        path = class_node.text if class_node else ""
        if "." in path or "generate_device" in names or "prefill_device" in names:
            return True
    return False


def translate_rules(root: Node, file: str) -> RuleSet:
    """Translates their list; raises RuleError for a class or device without a counterpart."""
    reader = Reader(file)
    rules: list[Rule] = []
    notes = [f"{file}: a KTransformers rule file, translated; unmatched modules go to cuda:0"]
    for node in root.value:
        item = _read_item(reader, node)
        matched = _matched_classes(reader, item)
        placed = _placed_classes(reader, item)
        classes = tuple(name for name in placed if name in matched)
        where = f"{file}:{node.line}: "
        if not classes:
            subject = item.replace.get("class", item.match.get("class", node)).text
            notes.append(f"{where}ignored: {subject.rpartition('.')[2]}: {_WHY_IGNORED}")
            continue
        device = _device(reader, item)
        placements = {name: _placement(reader, item, name, device) for name in classes}
        name = None
        if "name" in item.match:
            text = reader.typed(item.match["name"], str, "name")
            name = reader.call(item.match["name"], NamePattern, text)
        rules.append(Rule(node.line, placements, name, classes, None, _SUFFIXES, is_strict=False))
        ignored = [key for key in item.kwargs if key not in ("generate_device", "generate_op")]
        if ignored:
            notes.append(f"{where}ignored kwargs: {', '.join(key[:40] for key in ignored)}")
    return RuleSet(file, tuple(rules), default_device="cuda:0", notes=tuple(notes))


def _read_item(reader: Reader, node: Node) -> _Item:
    item = reader.mapping(node, ("match", "replace", "recursive"), "a rule")
    for key in ("match", "replace"):
        if key not in item:
            raise reader.error(node, f"the rule has no `{key}:`")
    match = reader.mapping(item["match"], ("name", "class"), "match")
    if not match:
        raise reader.error(item["match"], "`match:` is empty; give name or class")
    replace = reader.mapping(item["replace"], ("class", "kwargs"), "replace")
    has_kwargs = "kwargs" in replace and replace["kwargs"].value is not None
    kwargs = reader.mapping(replace["kwargs"], None, "kwargs") if has_kwargs else {}
    return _Item(node, match, replace, kwargs)


def _matched_classes(reader: Reader, item: _Item) -> tuple[str, ...]:
    if "class" not in item.match:
        return MODULE_CLASSES
    path = reader.typed(item.match["class"], str, "class")
    last = path.rpartition(".")[2]
    for prefix in ("DeepseekV3", "DeepseekV2"):
        last = last.removeprefix(prefix)
    if last not in _MATCH_CLASSES:
        known = did_you_mean(last, _MATCH_CLASSES)
        raise reader.error(item.match["class"], f"unknown KTransformers class {path!r}{known}")
    return _MATCH_CLASSES[last]


def _placed_classes(reader: Reader, item: _Item) -> tuple[str, ...]:
    if "class" not in item.replace:
        return MODULE_CLASSES
    path = reader.typed(item.replace["class"], str, "class")
    last = path.rpartition(".")[2]
    if last not in _REPLACE_CLASSES:
        known = did_you_mean(last, _REPLACE_CLASSES)
        raise reader.error(item.replace["class"], f"unknown KTransformers class {path!r}{known}")
    return _REPLACE_CLASSES[last]


def _device(reader: Reader, item: _Item) -> str:
    """Where the module is in decode, which is where theirs are loaded."""
    node = item.kwargs.get("generate_device")
    if node is None:
        return "cuda:0"
    device = reader.typed(node, str, "generate_device")
    spec = BACKENDS["norm"].kwargs["device"]
    if not spec.accepts(device):
        raise reader.error(node, f"generate_device: {device!r} is not {spec.expected}")
    return _DEVICES.get(device, device)


def _placement(reader: Reader, item: _Item, module_class: str, device: str) -> Placement:
    op = item.kwargs["generate_op"].text if "generate_op" in item.kwargs else ""
    if module_class == "Experts":
        named = "class" in item.replace and not item.replace["class"].text.endswith("default")
        if device != "cpu" and named:
            raise reader.error(
                item.kwargs.get("generate_device", item.node),
                f"generate_device: {device}: routed experts run on the CPU only; write cpu",
            )
        return Placement(*default_placement("Experts"))
    if module_class in _LINEAR and op in _CPU_LINEAR_OPS:
        device = "cpu"
    backend, kwargs = default_placement(module_class, device)
    overrides: dict[str, Any] = {}
    if module_class in _LINEAR and device != "cpu" and op in _BFLOAT16_OPS:
        overrides["weights"] = "bfloat16"
    return Placement(backend, kwargs | overrides)
