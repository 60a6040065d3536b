"""Builds the one C++ extension, hybrid_k2._cpu, with nothing but g++ and pybind11; the metadata is
in pyproject.toml.

Every file cpp_ext/kernels/<tier>/<quant>.cpp becomes an object of its own, compiled with its tier's
instruction set, and all objects are linked into one shared library that chooses among them at run
time. Where there is no compiler the package installs without the extension (experts then run on
numba, several times slower) and says so. HYBRID_K2_STRICT_BUILD=1 makes a warning, and a missing
compiler, an error: `make` and CI set it.
"""

import os
import platform
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

STRICT = os.environ.get("HYBRID_K2_STRICT_BUILD", "") == "1"
SANITIZE = os.environ.get("HYBRID_K2_SANITIZE", "")  # address or thread: tests/kernels does
SOURCE_DIR = Path("cpp_ext")

# Never -march=native (the build must run elsewhere), -ffast-math or -Ofast (at link time they turn
# on flush-to-zero for the whole Python process), nor LTO (it may merge a baseline function with its
# AVX-512 copy), nor contraction of a * b + c that the source does not spell: kernels promise the
# same bits for every batch size.
COMMON_FLAGS = [
    *("-O3", "-std=c++17", "-g0", "-pthread", "-fvisibility=hidden", "-fno-semantic-interposition"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fno-lto"),
]
STRICT_FLAGS = ["-Wall", "-Wextra", "-Werror"]
SANITIZE_FLAGS = [f"-fsanitize={SANITIZE}", "-g1", "-fno-omit-frame-pointer"]

_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = [
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"),
    # GCC 12 warns of uninitialised values inside its own avx512fintrin.h.
    *("-mprefer-vector-width=512", "-Wno-maybe-uninitialized", "-Wno-uninitialized"),
]
ISA_FLAGS = {
    "generic": [],
    "avx2": _AVX2,
    "avx512_vnni": _AVX512,
    "avx512_vbmi": [*_AVX512, "-mavx512vbmi", "-mgfni"],
    "amx": [*_AVX512, "-mamx-tile", "-mamx-bf16"],
    "amx_emulated": [],
}
PORTABLE = ("generic", "amx_emulated")  # tiers in plain C
IS_X86_64 = platform.machine().lower() in ("x86_64", "amd64")

NO_EXTENSION = """
****************************************************************************************************
WARNING: hybrid-k2 is being installed WITHOUT its C++ kernels: {reason}
The experts will run on numba instead, several times slower. Install g++ and Python's headers
(Debian, Ubuntu: apt install g++ python3-dev; Fedora: dnf install gcc-c++ python3-devel), then
install hybrid-k2 again. `hybrid-k2 doctor` tells which kernels are in use.
****************************************************************************************************
"""


def sources() -> list[str]:
    """All C++ sources that this machine's architecture compiles, relative to this file."""
    tiers = [tier for tier in ISA_FLAGS if IS_X86_64 or tier in PORTABLE]
    folders = [SOURCE_DIR, *(SOURCE_DIR / "kernels" / tier for tier in tiers)]
    return [path.as_posix() for folder in folders for path in sorted(folder.glob("*.cpp"))]


def every_file() -> list[str]:
    """All files below cpp_ext; depending on each makes setuptools see every edit."""
    return [path.as_posix() for path in sorted(SOURCE_DIR.rglob("*")) if path.is_file()]


def isa_flags(source: str) -> list[str]:
    """The instruction-set flags of a source: its folder's for a kernel, else none."""
    folder = Path(source).parent
    return ISA_FLAGS[folder.name] if folder.parent.name == "kernels" else []


class BuildKernels(build_ext):
    """Compiles on all cores, each object with its own flags, and only what has changed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # An editable install would build in a temporary folder and compile everything each time.
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        self.build_temp = os.path.join("build", f"{SANITIZE or 'temp'}.{tag}")

    def build_extension(self, ext: Extension) -> None:
        """Builds the extension, or, where that fails and the build is not strict, leaves it out."""
        try:
            self._compile_and_link(ext)
        except Exception as error:
            if STRICT:
                raise
            # pip shows this with -v only; loading a model without the extension warns again.
            print(NO_EXTENSION.format(reason=error), file=sys.stderr)

    def _compile_and_link(self, ext: Extension) -> None:
        import pybind11

        headers = [path for path in ext.depends if not path.endswith(".cpp")]
        newest_shared = max(os.path.getmtime(path) for path in [*headers, __file__])
        include_dirs = [str(SOURCE_DIR / "include"), pybind11.get_include(), *self.include_dirs]
        shared_flags = COMMON_FLAGS + (STRICT_FLAGS if STRICT else [])
        link_flags = ["-pthread", "-fno-lto"]
        if SANITIZE:
            # Not strict: with these GCC warns of its own headers.
            shared_flags = COMMON_FLAGS + SANITIZE_FLAGS
            link_flags += SANITIZE_FLAGS

        def compile_one(source: str) -> str:
            (target,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
            newest = max(newest_shared, os.path.getmtime(source))
            if self.force or not os.path.exists(target) or os.path.getmtime(target) < newest:
                self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    include_dirs=include_dirs,
                    extra_postargs=shared_flags + isa_flags(source),
                )
            return target

        # The compilers are processes of their own, so threads are enough to keep every core busy.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=link_flags,
            build_temp=self.build_temp,
            target_lang="c++",
        )


setup(
    packages=[
        *find_packages(include=["hybrid_k2", "hybrid_k2.*"]),
        "hybrid_k2.cli",
        "hybrid_k2.optimize_rules",
    ],
    # The two folders that a user looks for stand at the top; installed, they are part of the
    # package.
    package_dir={"hybrid_k2.cli": "cli", "hybrid_k2.optimize_rules": "optimize_rules"},
    package_data={
        "hybrid_k2.optimize_rules": ["*.yaml", "README.md"],
        "hybrid_k2.server": ["*.html"],
        "hybrid_k2.demo_model": ["*.gguf", "*.jinja", "*.json", "NOTICE", "README.md"],
    },
    ext_modules=[Extension("hybrid_k2._cpu", sources(), depends=every_file(), optional=not STRICT)],
    cmdclass={"build_ext": BuildKernels},
)
