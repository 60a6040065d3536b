"""What README and CONTRIBUTING tell a newcomer to type exists: commands, options, targets,
variables, files.
"""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hybrid_k2.cli import main
from hybrid_k2.config import ENVIRONMENT
from hybrid_k2.rules import load_rules

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "optimize_rules/README.md")
}
README = PAGES["README.md"]


def blocks(language: str) -> list[str]:
    """README's fenced blocks of one language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", README, re.S | re.M)


@pytest.mark.parametrize("name", PAGES)
def test_every_command_and_option_exists(name: str) -> None:
    for line in re.findall(r"hybrid-k2 [a-z][^`\n]*", PAGES[name]):
        words = line.split()
        command, depth = main.cli, 1
        while isinstance(command, click.Group) and len(words) > depth:  # bench has commands, too
            command = command.get_command(click.Context(command), words[depth])
            assert command is not None, line
            depth += 1
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("name", PAGES)
def test_every_make_target_exists(name: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    used = re.findall(r"(?:^|`)make ([a-z-]+)", PAGES[name], re.M)
    assert set(used) <= set(targets)


@pytest.mark.parametrize("name", PAGES)
def test_every_file_and_link_exists(name: str) -> None:
    folder = (ROOT / name).parent
    links = re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[name])
    files = re.findall(r"`((?:tests|benchmarks|cpp_ext|hybrid_k2|cli)/[\w./]+)`", PAGES[name])
    missing = [path for path in links if not (folder / path).exists()]
    missing += [path for path in files if not (ROOT / path).exists()]
    assert missing == []


def test_the_readme_names_exactly_the_environment_variables_there_are() -> None:
    assert set(re.findall(r"HYBRID_K2_\w+", README)) == set(ENVIRONMENT)


def test_the_readmes_python_runs_as_it_stands(tmp_path: Path) -> None:
    (example,) = blocks("python")
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6144)" in done.stdout


def test_the_readmes_faulty_rule_file_is_refused_as_it_says(tmp_path: Path) -> None:
    (example,) = blocks("yaml")
    file = tmp_path / "rules.yaml"
    file.write_text(example, encoding="utf-8")
    command = [sys.executable, "-m", "hybrid_k2", "plan", "--rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(r"rules\.yaml:\d+.*linear_gpu.*MLP", done.stderr, re.S), done.stderr


def test_the_rule_files_that_the_readme_names_ship() -> None:
    for name in re.findall(r"`(cpu|1gpu-\w+)`", README):
        assert load_rules(name)
