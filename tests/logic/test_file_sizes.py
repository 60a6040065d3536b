"""Files stay small enough to read in one sitting, begin by saying what they own, and name no
machine.

Limits are in non-blank lines; a file that reaches its limit holds two ideas.
"""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {".py": 450, ".cpp": 600, ".h": 600, ".yaml": 60}
LARGEST_FILE_BYTES = 1 << 20
DEMO_MODEL = "hybrid_k2/demo_model/"

# Folders of some machine; in brackets so that this line does not match itself.
MACHINE_PATH = re.compile(r"[/]work/|[/]root/|[/]home/\w|[/]tmp/\w|[/]farm/|[/]mnt/")


def tracked() -> list[str]:
    """Every file that git tracks; the tests below are skipped in a copy without git."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


TRACKED = tracked()
needs_git = pytest.mark.skipif(not TRACKED, reason="not a git checkout: no list of tracked files")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8", errors="replace")


@needs_git
def test_no_source_is_longer_than_its_limit() -> None:
    too_long = []
    for name in TRACKED:
        limit = LIMITS.get(Path(name).suffix)
        lines = sum(1 for line in read(name).splitlines() if line.strip()) if limit else 0
        if limit and lines > limit:
            too_long.append(f"{name}: {lines} non-blank lines, limit {limit}; split it by idea")
    assert too_long == []


@needs_git
def test_no_tracked_file_is_large_but_the_demo_model() -> None:
    large = [name for name in TRACKED if (ROOT / name).stat().st_size > LARGEST_FILE_BYTES]
    assert [name for name in large if not name.startswith(DEMO_MODEL)] == []


@needs_git
def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    found = []
    for name in TRACKED:
        data = (ROOT / name).read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert found == []


@needs_git
def test_every_module_says_first_what_it_owns() -> None:
    silent = []
    for name in TRACKED:
        if not name.endswith(".py") or not read(name).strip():
            continue
        if not ast.get_docstring(ast.parse(read(name))):
            silent.append(name)
    assert silent == []


@needs_git
def test_no_module_is_named_for_what_does_not_fit_elsewhere() -> None:
    vague = re.compile(r"(^|[/_])(utils?|common|misc|helpers?|manager|v2)(\.|/|$)")
    assert [name for name in TRACKED if vague.search(name)] == []


@needs_git
def test_work_in_progress_is_an_issue_and_not_a_comment() -> None:
    mark = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
    sources = [name for name in TRACKED if Path(name).suffix in LIMITS]
    assert [name for name in sources if mark.search(read(name))] == []
