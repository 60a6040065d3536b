"""Finds and reads rule files: by path, by the name of one that ships, or `auto` for this machine.

Owns what names mean. The text itself goes to schema.py, or to ktransformers.py for their format.
"""

import logging
from importlib import resources
from pathlib import Path

from hybrid_k2.backends.registry import did_you_mean
from hybrid_k2.errors import RuleError
from hybrid_k2.rules.hardware import Hardware, probe_hardware
from hybrid_k2.rules.ktransformers import is_ktransformers, translate_rules
from hybrid_k2.rules.schema import RuleSet, parse_rules
from hybrid_k2.rules.yaml_lines import MAX_BYTES, parse_yaml

log = logging.getLogger(__name__)

AUTO = "auto"
_PACKAGE = "hybrid_k2.optimize_rules"
# By free memory of the first GPU, in bytes: what a card of that class leaves beside a desktop.
_AUTO_CHOICES = ((92 << 30, "1gpu-96gb"), (44 << 30, "1gpu-48gb"), (21 << 30, "1gpu-24gb"))


def shipped_names() -> list[str]:
    """Names of the rule files that come with the package, without `.yaml`."""
    folder = resources.files(_PACKAGE)
    return sorted(
        path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml")
    )


def load_rules(rules: str | Path = AUTO, hardware: Hardware | None = None) -> RuleSet:
    """Reads a rule file given as a path, the name of one that ships (`1gpu-24gb`), or `auto`.

    `auto` picks by `hardware`, which is probed where it is not given. Raises RuleError that starts
    with `file:line:` for a mistake in the file, and with the name where there is no such file.
    """
    name = str(rules)
    if name == AUTO:
        name = choose_rules(hardware or probe_hardware())
    path = Path(name)
    shipped = shipped_names()
    if name.removesuffix(".yaml") in shipped and not path.is_file():
        file = f"{name.removesuffix('.yaml')}.yaml"
        return parse_rule_text(resources.files(_PACKAGE).joinpath(file).read_bytes(), file)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        known = did_you_mean(path.name.removesuffix(".yaml"), [AUTO, *shipped])
        raise RuleError(f"{name}: no such rule file{known}") from None
    except IsADirectoryError:
        raise RuleError(f"{name}: a directory; give the rule file in it") from None
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL in it
        raise RuleError(f"{name[:80]!r}: cannot be read as a rule file: {error}") from None
    return parse_rule_text(data, name)


def parse_rule_text(data: bytes, file: str) -> RuleSet:
    """Parses the bytes of a rule file in either format; `file` is its name in error messages."""
    root = parse_yaml(data, file)
    if is_ktransformers(root):
        return translate_rules(root, file)
    return parse_rules(root, file)


def choose_rules(hardware: Hardware) -> str:
    """The shipped file that suits the first GPU's free memory; `cpu` without one."""
    free = next(iter(hardware.vram.values()), 0)
    for least, name in _AUTO_CHOICES:
        if free >= least:
            return name
    if free:
        log.warning(
            "the GPU has %.1f GiB free, less than any shipped rule file needs: using cpu.yaml",
            free / (1 << 30),
        )
    return "cpu"
