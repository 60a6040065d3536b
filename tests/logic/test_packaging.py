"""The build: what an installation holds, how C++ objects are made, and that no compiler is no
failure.

Runs setup.py in a small copy of the project whose C++ is a few lines, so that each build takes a
second. The objects of the real extension are looked at in tests/kernels.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A module whose attribute `built` tells what each object saw when it was compiled.
MAIN = """
#include <Python.h>
#include "hk2/value.h"
extern "C" int generic_kernel(), avx2_kernel(), avx512_kernel();
static PyModuleDef definition;
PyMODINIT_FUNC PyInit__cpu() {
  definition.m_name = "_cpu";
  definition.m_size = -1;
  PyObject* module = PyModule_Create(&definition);
  PyObject* built = Py_BuildValue("(iiii)", kValue, generic_kernel(), TIERS);
  PyModule_AddObject(module, "built", built);
  return module;
}
"""
KERNEL = """
extern "C" int NAME() {
#if defined(__AVX512VNNI__)
  return 512;
#elif defined(__AVX2__)
  return 2;
#else
  return 0;
#endif
}
"""

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no g++: nothing to build with"
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with a toy extension: one binding, one kernel a tier, one header."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("hybrid_k2", "cli", "optimize_rules"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    kernels = tmp_path / "cpp_ext" / "kernels"
    names = {"generic": "generic_kernel", "avx2": "avx2_kernel", "avx512_vnni": "avx512_kernel"}
    for tier, name in names.items():
        (kernels / tier).mkdir(parents=True)
        (kernels / tier / "q.cpp").write_text(KERNEL.replace("NAME", name))
    (tmp_path / "cpp_ext" / "include" / "hk2").mkdir(parents=True)
    (tmp_path / "cpp_ext" / "include" / "hk2" / "value.h").write_text("const int kValue = 1;\n")
    is_x86 = os.uname().machine == "x86_64"
    tiers = "avx2_kernel(), avx512_kernel()" if is_x86 else "2, 512"
    (tmp_path / "cpp_ext" / "bindings.cpp").write_text(MAIN.replace("TIERS", tiers))
    return tmp_path


def build(project: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py in `project` and returns what it printed."""
    return subprocess.run(
        [sys.executable, "setup.py", *(command or ("build_ext", "--inplace"))],
        cwd=project,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def built(project: Path) -> tuple[int, ...]:
    """The toy extension's `built`, imported in a Python of its own."""
    code = "import importlib.util as u, sys; s = u.spec_from_file_location('_cpu', sys.argv[1])\n"
    code += "m = u.module_from_spec(s); s.loader.exec_module(m); print(*m.built)"
    (library,) = (project / "hybrid_k2").glob("_cpu*.so")
    command = [sys.executable, "-c", code, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(map(int, done.stdout.split()))


def age(project: Path) -> None:
    """Makes every source and object an hour old, objects newer than sources."""
    now = (project / "setup.py").stat().st_mtime
    for path in project.rglob("*"):
        if path.is_file():
            past = now - (1800 if path.suffix in (".o", ".so") else 3600)
            os.utime(path, (past, past))


def compiled(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The sources that a build compiled, by their path below cpp_ext."""
    return sorted(re.findall(r" -c cpp_ext/(\S+)", done.stdout))


def test_each_kernel_and_nothing_else_is_compiled_for_its_instruction_set(project) -> None:
    done = build(project, HYBRID_K2_STRICT_BUILD="1")
    assert done.returncode == 0, done.stderr
    assert built(project) == (1, 0, 2, 512)
    for line in done.stdout.splitlines():
        if " -c cpp_ext/" in line:
            assert ("-mavx" in line) == ("kernels/avx" in line), line
            assert not re.search(r"-march=native|-ffast-math|-Ofast|-flto\b", line), line


def test_an_edited_kernel_is_compiled_alone_and_linked(project) -> None:
    assert build(project).returncode == 0
    age(project)
    kernel = project / "cpp_ext" / "kernels" / "generic" / "q.cpp"
    kernel.write_text(kernel.read_text().replace("return 0", "return 77"))
    assert compiled(build(project)) == ["kernels/generic/q.cpp"]
    assert built(project)[1] == 77


def test_an_edited_header_compiles_everything_again(project) -> None:
    assert build(project).returncode == 0
    age(project)
    (project / "cpp_ext" / "include" / "hk2" / "value.h").write_text("const int kValue = 5;\n")
    assert "bindings.cpp" in compiled(build(project))
    assert built(project)[0] == 5


def test_without_a_compiler_the_build_succeeds_and_says_loudly_what_is_missing(project) -> None:
    done = build(project, CC="no-such-compiler", CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert "WITHOUT its C++ kernels" in done.stderr and "slower" in done.stderr
    assert not list(project.glob("hybrid_k2/_cpu*.so"))


def test_a_strict_build_without_a_compiler_fails(project) -> None:
    nothing = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}
    assert build(project, HYBRID_K2_STRICT_BUILD="1", **nothing).returncode != 0


def test_a_strict_build_takes_no_warning(project) -> None:
    kernel = project / "cpp_ext" / "kernels" / "generic" / "q.cpp"
    kernel.write_text("static int never_called() { return 1; }\n" + kernel.read_text())
    assert build(project).returncode == 0
    shutil.rmtree(project / "build")
    assert build(project, HYBRID_K2_STRICT_BUILD="1").returncode != 0


def test_a_wheel_holds_the_commands_the_rules_and_the_demo_model(project) -> None:
    done = build(project, "-q", "bdist_wheel", "--dist-dir", "out")
    assert done.returncode == 0, done.stderr
    (wheel,) = (project / "out").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = list(project.glob("hybrid_k2/**/*.py"))
    data = [
        project / "hybrid_k2" / "demo_model" / name
        for name in ("demo.gguf", "tokenizer.json", "chat_template.jinja", "NOTICE", "README.md")
    ]
    expected = {path.relative_to(project).as_posix() for path in modules + data}
    for name in ("cli", "optimize_rules"):
        expected |= {f"hybrid_k2/{name}/{path.name}" for path in (project / name).glob("*.[py]*")}
    assert expected <= names, expected - names
    assert any(re.fullmatch(r"hybrid_k2/_cpu\..*\.so", name) for name in names)
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"hybrid_k2"}


def test_every_dependency_is_pinned_for_the_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    for requirement in wanted:
        name = re.split(r"[<>=\[]", requirement)[0].strip().lower().replace("_", "-")
        assert re.search(rf"^{re.escape(name)}==\S+$", pins, re.M), f"{name} is not pinned"
