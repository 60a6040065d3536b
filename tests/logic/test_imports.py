"""Imports go one way: read from the sources, every form of import, lazy ones and names in strings
too.

The tables below are the architecture. An import that they refuse belongs in another layer; a new
row needs a reason that CONTRIBUTING.md can give.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "hybrid_k2"

# Who may import whom, beside itself. `backends.registry` stands for that one module of backends.
ALLOWED = {
    "__init__": "api engine",
    "__main__": "cli",
    "cli": "__init__ api server engine text rules checkpoint config errors demo_model quant bench"
    " backends.registry _cpu",
    "api": "engine text rules checkpoint config errors demo_model",
    "server": "__init__ engine text config errors",
    "engine": "model rules checkpoint backends quant config errors",
    "bench": "__init__ model backends checkpoint quant config errors _cpu",
    "model": "backends config errors",
    "rules": "backends.registry backends.footprint checkpoint quant config errors cgroups"
    " optimize_rules",
    "backends": "kernels quant config errors cgroups _cpu",
    "kernels": "quant config errors",
    "checkpoint": "quant config errors",
    "text": "config errors",
    "quant": "errors",
    "config": "errors cgroups",
    "cgroups": "",
    "errors": "",
    "optimize_rules": "",
    "demo_model": "",
}
# The scripts that built the demo model run in a checkout, never at run time.
ALLOWED_IN_SCRIPTS = "demo_model checkpoint config text"

# Packages that a part of the program can do without, and the only places that import them.
OPTIONAL_PACKAGES = {
    "fastapi": "server cli",
    "starlette": "server",
    "uvicorn": "server cli",
    "prompt_toolkit": "cli",
    "numba": "quant backends",
    "triton": "kernels",
    "tiktoken": "text",
    "llguidance": "text",
    "tokenizers": "demo_model",
    "regex": "rules",
    "yaml": "rules",
    "click": "cli",
    "gguf": "checkpoint quant demo_model bench",
    "llama_cpp": "bench",
    "transformers": "",
}


def module_files() -> list[tuple[str, Path]]:
    """(dotted name as installed, file) of every module of the package, cli and optimize_rules."""
    homes = {PACKAGE: ROOT / PACKAGE}
    homes |= {f"{PACKAGE}.{name}": ROOT / name for name in ("cli", "optimize_rules")}
    found = []
    for prefix, folder in homes.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found.append((".".join((prefix, *parts)), file))
    return found


def imported_names(tree: ast.AST, module: str) -> Iterator[str]:
    """Yields every dotted name that the module may import: statements, import_module, strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # `module` is written as pkg.sub.file, or pkg.sub.__init__
                package = module.split(".")[: -node.level]
                base = ".".join([*package, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Names for importlib: "hybrid_k2.backends.norm:Norm", or the head of
            # f"hybrid_k2.cli.{x}".
            if re.fullmatch(rf"{PACKAGE}(\.\w+)+[.:]?\w*", node.value):
                yield node.value.replace(":", ".").rstrip(".")


def unit_of(name: str) -> str | None:
    """The row of ALLOWED that a dotted name belongs to; None for another package."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return None
    if len(parts) == 1 or parts[1] not in ALLOWED | {"_cpu": ""}:
        # `import hybrid_k2`, `from hybrid_k2 import Engine`
        return "__init__"
    if parts[1] == "backends" and len(parts) > 2 and parts[2] in ("registry", "footprint"):
        return f"backends.{parts[2]}"
    return parts[1]


def refusals(module: str, source: str) -> list[str]:
    """What `module` imports against the tables."""
    importer = module.split(".")[1] if "." in module else "__init__"
    allowed = set(ALLOWED[importer].split())
    if importer == "demo_model" and not module.endswith("__init__"):
        allowed |= set(ALLOWED_IN_SCRIPTS.split())
    refused = []
    for name in imported_names(ast.parse(source), module):
        unit = unit_of(name)
        if unit is None:
            package = name.split(".")[0]
            homes = OPTIONAL_PACKAGES.get(package)
            if homes is not None and importer not in homes.split():
                refused.append(f"{module} imports the package {package}")
        elif unit.split(".")[0] != importer and not {unit, unit.split(".")[0]} & allowed:
            refused.append(f"{module} imports {name}")
    return refused


@pytest.mark.parametrize(("module", "file"), module_files(), ids=lambda value: str(value))
def test_a_module_imports_only_what_lies_below_it(module: str, file: Path) -> None:
    assert refusals(module, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import hybrid_k2.engine",
        "import hybrid_k2.engine.loader as loader",
        "from hybrid_k2 import engine",
        "from hybrid_k2 import Engine",
        "from hybrid_k2.engine import loader",
        "from ..engine import loader",
        "from .. import engine",
        "def later():\n    from hybrid_k2.engine.loader import load",
        "import importlib\nimportlib.import_module('hybrid_k2.engine')",
        "factory = 'hybrid_k2.engine.loader:load'",
        "name = 'x'\nimportlib.import_module(f'hybrid_k2.engine.{name}')",
        "import fastapi",
    ],
)
def test_every_form_of_a_forbidden_import_is_seen(line: str) -> None:
    assert refusals("hybrid_k2.text.tokenizer", line)


def test_an_allowed_import_and_prose_about_modules_are_not_refused() -> None:
    source = "'see hybrid_k2.engine, which runs it'\nfrom hybrid_k2.errors import TokenizerError"
    assert refusals("hybrid_k2.text.tokenizer", source) == []


def test_the_rules_know_backends_by_their_table_only() -> None:
    assert (
        refusals("hybrid_k2.rules.plan", "from hybrid_k2.backends.registry import BACKENDS") == []
    )
    assert refusals("hybrid_k2.rules.plan", "from hybrid_k2.backends.linear import LinearCpu")


def test_the_table_of_directions_has_no_cycle() -> None:
    below: dict[str, set[str]] = {
        unit: {name.split(".")[0] for name in allowed.split()} - {"_cpu", unit, "__init__"}
        for unit, allowed in ALLOWED.items()
    }
    while below:
        free = [unit for unit, needs in below.items() if not needs & below.keys()]
        assert free, f"these import each other in a circle: {sorted(below)}"
        for unit in free:
            del below[unit]


@pytest.mark.parametrize(
    ("statement", "blocked"),
    [
        ("import hybrid_k2", "torch numpy numba fastapi uvicorn prompt_toolkit click yaml"),
        ("import hybrid_k2.cli.main", "torch numpy numba fastapi uvicorn prompt_toolkit yaml"),
        ("from hybrid_k2 import Engine", "fastapi uvicorn prompt_toolkit numba transformers"),
    ],
)
def test_an_import_works_without_the_packages_it_has_no_use_for(
    statement: str, blocked: str
) -> None:
    code = f"import sys\nfor name in {blocked.split()}: sys.modules[name] = None\n{statement}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_environment_variables_are_read_in_config_only() -> None:
    for module, file in module_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", getattr(node, "id", ""))
            if name in ("environ", "getenv"):
                assert module == f"{PACKAGE}.config", f"{file}:{node.lineno} reads {name}"


def test_the_library_logs_and_only_the_command_line_prints() -> None:
    for module, file in module_files():
        if module.startswith((f"{PACKAGE}.cli", f"{PACKAGE}.demo_model.build")):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                pytest.fail(f"{file}:{node.lineno} prints; use logging.getLogger(__name__)")
