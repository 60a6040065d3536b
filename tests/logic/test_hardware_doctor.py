"""`hybrid-k2 doctor`: an answer for every question, and a fix for every one that is not ok."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hybrid_k2.cli import doctor
from hybrid_k2.cli.main import cli
from hybrid_k2.rules import Gpu, Hardware

GIB = 1 << 30
GOOD = Hardware(
    ram_bytes=512 * GIB,
    ram_available=500 * GIB,
    cpus=16,
    gpus=(Gpu("cuda:0", "Fake GPU", 24 * GIB, 23 * GIB),),
    physical_cores=8,
    cpu_name="Fake CPU",
    tiers=("generic", "avx2"),
    huge_pages="madvise",
)


def test_every_question_is_answered_and_what_is_not_ok_has_a_fix() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    data = json.loads(result.stdout)
    assert data["schema_version"] == 1
    names = [check["name"] for check in data["checks"]]
    for name in ("python", "torch", "cpu", "extension", "ram", "gpu", "disk", "packages", "rules"):
        assert name in names
    for check in data["checks"]:
        assert check["status"] in ("ok", "warn", "fail")
        assert bool(check["fix"]) == (check["status"] != "ok"), check
    failed = any(check["status"] == "fail" for check in data["checks"])
    assert result.exit_code == (1 if failed else 0)


def test_the_text_has_a_line_for_each_answer() -> None:
    result = CliRunner().invoke(cli, ["doctor"])
    lines = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert {line.split()[0] for line in lines} <= {"ok", "warn", "fail"}
    assert len(lines) >= 10


def test_the_installed_interpreter_and_torch_pass() -> None:
    assert doctor.check_torch().status == "ok"
    assert doctor.check_python((3, 11)).status == "ok"
    assert doctor.check_python((3, 10)).status == "fail"


@pytest.mark.parametrize(
    ("check", "hardware", "status"),
    [
        (doctor.check_cpu, GOOD, "ok"),
        (doctor.check_ram, GOOD, "ok"),
        (doctor.check_ram, replace(GOOD, ram_available=200 * GIB), "warn"),
        (doctor.check_cgroup, GOOD, "ok"),
        (doctor.check_cgroup, replace(GOOD, cgroup_bytes=64 * GIB), "warn"),
        (doctor.check_huge_pages, GOOD, "ok"),
        (doctor.check_huge_pages, replace(GOOD, huge_pages="never"), "warn"),
    ],
)
def test_a_machine_is_judged_by_what_it_has(check, hardware: Hardware, status: str) -> None:
    found = check(hardware)
    assert found.status == status
    assert bool(found.fix) == (status != "ok")


@pytest.mark.parametrize(
    ("gpus", "has_nvidia", "status", "says"),
    [
        (GOOD.gpus, True, "ok", "cuda:0 Fake GPU: 24.7 GB free of 25.8 GB"),
        ((), True, "warn", "this torch cannot use it"),
        ((), False, "ok", "everything runs on the CPU"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_told_from_none_at_all(
    gpus: tuple[Gpu, ...], has_nvidia: bool, status: str, says: str
) -> None:
    check = doctor.check_gpu(replace(GOOD, gpus=gpus), has_nvidia)
    assert check.status == status and says in check.detail


class FakeExtension:
    """Stands for hybrid_k2._cpu: two tiers, three types."""

    def Kernels(self, tier: str) -> "FakeExtension":
        if tier not in ("", "avx2", "generic"):
            raise ValueError(f"unknown tier {tier!r}; known: generic, avx2")
        return self

    def table(self) -> dict[str, str]:
        return {"Q4_K": "avx2", "Q5_0": "generic", "Q8_0": "avx2"}

    def ThreadPool(self, num_threads: int) -> object:
        return num_threads

    def read_bandwidth(self, pool: object, num_bytes: int, repeats: int) -> float:
        return 119.0


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cpu_extension", FakeExtension)


@pytest.mark.usefixtures("extension")
def test_the_kernels_are_listed_by_tier_with_the_speed_that_memory_allows() -> None:
    kernels, bandwidth = doctor.check_kernels()
    assert kernels.detail == "avx2: Q4_K Q8_0; generic: Q5_0"
    assert "at most 10.0 tokens/s" in bandwidth.detail
    assert doctor.check_extension(GOOD).status == "ok"
    assert doctor.check_extension(replace(GOOD, tiers=("generic",))).status == "warn"


@pytest.mark.usefixtures("extension")
def test_a_lowered_tier_is_shown_and_an_unknown_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_K2_ISA", "generic")
    assert "(HYBRID_K2_ISA=generic)" in next(iter(doctor.check_kernels())).detail
    monkeypatch.setenv("HYBRID_K2_ISA", "avx3")
    (check,) = doctor.check_kernels()
    assert check.status == "fail" and "avx3" in check.detail


def test_without_the_extension_the_fallback_is_named_and_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "cpu_extension", lambda: None)
    check = doctor.check_extension(GOOD)
    assert check.status == "warn" and "numba" in check.detail and "g++" in check.fix
    assert list(doctor.check_kernels()) == []


def test_a_missing_package_is_a_warning_with_the_pip_command() -> None:
    answers = list(doctor.check_packages(lambda name: None if name == "uvicorn" else object()))
    (missing,) = [check for check in answers if check.status == "warn"]
    assert missing.fix == "pip install uvicorn" and "hybrid-k2 serve" in missing.detail


def test_the_disk_of_a_folder_is_measured(tmp_path: Path) -> None:
    assert "free here" in doctor.check_disk(tmp_path).detail


def test_a_check_that_fails_makes_the_command_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = doctor.Check("torch", "fail", "too old", "pip install torch")
    monkeypatch.setattr(doctor, "run_checks", lambda: iter([failing]))
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1
    assert "fix: pip install torch" in result.stdout
