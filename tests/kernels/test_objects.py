"""Kernel objects keep to themselves: one exported symbol each, no intrinsics outside kernels/."""

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "cpp_ext" / "kernels").glob("*/*.cpp"))


def built_object(source: Path) -> Path | None:
    """The newest object of a kernel source in setuptools' build/temp.* folder."""
    name = source.relative_to(ROOT).with_suffix(".o")
    found = [p for p in ROOT.glob(f"build/temp*/**/{name.name}") if p.parts[-3:] == name.parts[-3:]]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_kernel_object_exports_one_symbol(source):
    path = built_object(source)
    if path is None:
        pytest.skip(
            "no kernel objects under build/temp* (build with: python setup.py build_ext --inplace)"
        )
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    lines = subprocess.run(
        ["nm", "--defined-only", "--extern-only", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert [line.split()[-1] for line in lines] == [f"hk2_{source.parent.name}_{source.stem}"]


def test_the_grids_are_the_gguf_packages():
    folder = ROOT / "cpp_ext" / "kernels" / "grids"
    script = runpy.run_path(str(folder / "write_grids.py"))
    assert {path.stem for path in folder.glob("*.h")} == set(script["NAMES"])
    for name in script["NAMES"]:
        assert script["path_of"](name).read_text() == script["header"](name)


def test_only_kernels_include_instruction_set_headers():
    pattern = re.compile(r'#include\s*[<"][a-z0-9]*intrin\.h')
    tiers = {p.parent for p in SOURCES if p.parent.name != "generic"}
    for path in (ROOT / "cpp_ext").rglob("*.*"):
        if pattern.search(path.read_text()):
            assert path.parent in tiers, path


def test_every_kernel_source_is_in_the_table():
    table = (ROOT / "cpp_ext" / "kernels.inc").read_text()
    for source in SOURCES:
        if source.stem not in ("activations", "tiles"):
            assert f"{source.parent.name}, {source.stem})" in table, source
        else:
            assert f"{source.parent.name})" in table, source
