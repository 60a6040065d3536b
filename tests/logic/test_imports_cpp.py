"""Includes go one way in C++ too: bindings -> experts -> kernel table -> kernels, and a kernel
knows the table only.

Read from the sources. What a kernel object exports is checked on the objects, in tests/kernels.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CPP = ROOT / "cpp_ext"
KERNELS = sorted((CPP / "kernels").glob("*/*.cpp"))
SOURCES = sorted(path for path in CPP.rglob("*") if path.suffix in (".h", ".cpp", ".inc"))

# Header-only C++ code would be compiled once per instruction set, and the linker keeps any copy.
KERNEL_SYSTEM_HEADERS = re.compile(r"immintrin\.h|(assert|float|limits|math|std\w+|string)\.h")


def includes(file: Path) -> list[str]:
    """The names that a file includes, quotes and brackets alike."""
    text = file.read_text(encoding="utf-8")
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text, re.M)


def relative(file: Path) -> str:
    return file.relative_to(CPP).as_posix()


@pytest.mark.parametrize("file", KERNELS, ids=relative)
def test_a_kernel_includes_only_contracts_intrinsics_and_c_headers(file: Path) -> None:
    for name in includes(file):
        beside = (file.parent / name).is_file()
        contract = name.startswith("hk2/") and (CPP / "include" / name).is_file()
        assert beside or contract or KERNEL_SYSTEM_HEADERS.fullmatch(name), name


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_only_the_bindings_know_python(file: Path) -> None:
    known = [name for name in includes(file) if name.startswith(("pybind11/", "Python.h"))]
    assert not known or file.name.startswith("bindings")


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_nothing_in_cpp_reads_the_environment_or_prints(file: Path) -> None:
    text = re.sub(r"//.*", "", file.read_text(encoding="utf-8"))
    assert not re.search(r"\b(getenv|printf|fprintf|std::cout|std::cerr)\b", text)


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_a_source_is_compiled_once_more_by_its_namesake_only_and_headers_have_guards(file) -> None:
    sources = [name for name in includes(file) if name.endswith(".cpp")]
    assert sources in ([], [f"../avx512_vnni/{file.name}"])
    if file.suffix == ".h":
        assert re.search(r"#pragma once|#ifndef HK2_", file.read_text(encoding="utf-8"))
