"""The kernels under AddressSanitizer and the thread pool under ThreadSanitizer: the tests beside
this file once more, in a process whose extension watches every access.

Builds that extension in build/address.* and build/thread.*, so later runs compile what has changed;
the first takes some minutes on two cores, so only `make sanitize` runs these.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.sanitizer

# Left out of what is run: types whose kernels are another's but for the codes. A sanitizer makes
# the rest several times slower.
ALIKE = "F16 or Q4_1 or Q5_0 or Q5_1 or Q5_K or Q2_K or Q3_K or IQ1_S or IQ2_XS or IQ2_S"
ALIKE += " or IQ3_XXS or IQ4 or TQ2_0 or MXFP4"
FILES = ["test_products.py", "test_tiles.py", "test_moe.py", "test_handoff.py", "test_numa.py"]
RUNS = {
    "address": [*FILES, "test_errors.py", "-k", f"not ({ALIKE})"],
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


def runtimes_of(sanitizer: str) -> str:
    """g++'s libraries that a process which is not instrumented itself must load first: the
    sanitizer's, and C++'s, without which its handling of exceptions aborts.
    """
    names = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer], "libstdc++.so"
    found = []
    for name in names:
        try:
            done = subprocess.run(
                ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("g++ is not installed")
        found.append(done.stdout.strip())
        if not os.path.isabs(found[-1]):
            pytest.skip(f"g++ has no {name} here (Debian, Ubuntu: it comes with g++)")
    return " ".join(found)


@pytest.fixture(params=RUNS)
def sanitizer(request, tmp_path) -> tuple[str, Path]:
    """Its name, and the extension built with it."""
    name = request.param
    runtimes_of(name)
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
        env={**os.environ, **OPTIONS[sanitizer], "LD_PRELOAD": runtimes_of(sanitizer)},
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
    assert re.search(r"\d+ passed", done.stdout), "it ended before its summary"
    print(done.stdout.splitlines()[-1])
