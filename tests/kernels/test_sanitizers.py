"""The kernels under AddressSanitizer and the thread pool under ThreadSanitizer: the tests beside
this file once more, in a process whose extension watches every access.

Builds that extension in build/address.* and build/thread.*, so later runs compile what has changed;
the first takes some minutes on two cores, so only `make sanitize` runs these.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.sanitizer

# What is run. One type of each kind of kernel: a sanitizer makes them several times slower.
TYPES = "F32 or BF16 or Q4_0 or Q4_K or Q6_K or Q8_0 or IQ2_XXS or IQ3_S or IQ1_M or TQ1_0"
RUNS = {
    "address": ["test_products.py", "test_tiles.py", "test_moe.py", "test_errors.py", "-k", TYPES],
    # A child of fork has no threads that the sanitizer knows of.
    "thread": ["test_pool.py", "test_moe.py", "test_handoff.py", "-k", "not fork and not IQ"],
}
OPTIONS = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0"},  # Python keeps what it allocates
    # What OpenMP does inside torch is not instrumented, so it looks unsynchronised.
    "thread": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66"},
}
RUN = """
import importlib.util, sys
import pytest
spec = importlib.util.spec_from_file_location("hybrid_k2._cpu", sys.argv[1])
sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.exit(pytest.main(sys.argv[2:]))
"""


def runtime_of(sanitizer: str) -> str:
    """g++'s library, which a process that is not instrumented itself must load first."""
    name = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    try:
        found = subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("g++ is not installed")
    if not os.path.isabs(found):
        pytest.skip(f"g++ has no {name} here (Debian, Ubuntu: it comes with g++)")
    return found


@pytest.fixture(params=RUNS)
def sanitizer(request, tmp_path) -> tuple[str, Path]:
    """Its name, and the extension built with it."""
    name = request.param
    runtime_of(name)
    pytest.importorskip("pybind11", reason="pybind11 is needed to build the extension")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path)],
        env={**os.environ, "HYBRID_K2_SANITIZE": name, "HYBRID_K2_STRICT_BUILD": "1"},
        cwd=ROOT,
        check=True,
    )
    (extension,) = (tmp_path / "hybrid_k2").glob("_cpu.*.so")
    return name, extension


def run_tests(sanitizer: str, extension: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            *(sys.executable, "-c", RUN, str(extension)),
            *("-x", "-q", "-p", "no:cacheprovider", *arguments),
        ],
        env={**os.environ, **OPTIONS[sanitizer], "LD_PRELOAD": runtime_of(sanitizer)},
        cwd=ROOT / "tests" / "kernels",
        capture_output=True,
        text=True,
    )


def test_no_kernel_touches_what_is_not_its_own(sanitizer) -> None:
    """Nor does a worker read what another is writing: 512-bit loads did, behind a row's end."""
    name, extension = sanitizer
    assert f"__{name[0]}san_init".encode() in extension.read_bytes()
    done = run_tests(name, extension, *RUNS[name])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert " passed" in done.stdout
