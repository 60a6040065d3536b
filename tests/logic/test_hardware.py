"""The hardware probe on machines made of files: host, container limits of both kinds, odd ones."""

from pathlib import Path

import pytest

from hybrid_k2.rules import Gpu, probe_hardware

GIB = 1 << 30
MEMINFO = "MemTotal: 536870912 kB\nMemFree: 1048576 kB\nMemAvailable: 524288000 kB\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    """A root folder with 512 GiB of RAM and those files."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def topology(cpus_per_core: int, cores: int) -> dict[str, str]:
    """Sibling threads numbered as Linux does: core 0..n-1, then their second threads."""
    return {
        f"sys/devices/system/cpu/cpu{thread * cores + core}/topology/{name}": f"{value}\n"
        for thread in range(cpus_per_core)
        for core in range(cores)
        for name, value in (("core_id", core % 4), ("physical_package_id", core // 4))
    }


def test_a_plain_host_has_what_proc_says(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "processor : 0\nmodel name\t: Fake CPU @ 2 GHz\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        **topology(cpus_per_core=2, cores=8),
    }
    found = probe_hardware(machine(tmp_path, files), affinity=range(16))
    assert (found.ram_bytes, found.ram_available) == (512 * GIB, 500 * GIB)
    assert (found.cpus, found.physical_cores, found.cpu_name) == (16, 8, "Fake CPU @ 2 GHz")
    assert (found.huge_pages, found.cgroup_bytes, found.gpus) == ("madvise", None, ())


def test_the_affinity_mask_limits_cores(tmp_path: Path) -> None:
    root = machine(tmp_path, topology(cpus_per_core=2, cores=8))
    found = probe_hardware(root, affinity={0, 8, 1})
    assert (found.cpus, found.physical_cores) == (3, 2)


def test_a_cgroup_of_version_2_limits_ram_and_its_page_cache_is_available(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/docker/abc"
    files = {
        "proc/self/cgroup": "0::/docker/abc\n",
        f"{group}/memory.max": f"{64 * GIB}\n",
        f"{group}/memory.current": f"{50 * GIB}\n",
        f"{group}/memory.stat": f"anon {10 * GIB}\ninactive_file {30 * GIB}\n"
        f"active_file {10 * GIB}\n",
        f"{group}/cpu.max": "350000 100000\n",
    }
    found = probe_hardware(machine(tmp_path, files), affinity=range(16))
    assert (found.ram_bytes, found.cgroup_bytes) == (64 * GIB, 64 * GIB)
    assert found.ram_available == (64 - 10) * GIB
    assert found.cpus == 4


def test_the_tightest_of_nested_groups_holds(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.max": f"{32 * GIB}\n",
        "sys/fs/cgroup/a/memory.current": f"{2 * GIB}\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
    }
    found = probe_hardware(machine(tmp_path, files), affinity=range(16))
    assert (found.ram_bytes, found.ram_available, found.cpus) == (32 * GIB, 30 * GIB, 2)


@pytest.mark.parametrize("path", ["/docker/abc", "/", "/../../outside"])
def test_in_a_container_the_group_is_found_at_the_mount_itself(tmp_path: Path, path: str) -> None:
    files = {"proc/self/cgroup": f"0::{path}\n", "sys/fs/cgroup/memory.max": f"{16 * GIB}\n"}
    assert probe_hardware(machine(tmp_path, files)).ram_bytes == 16 * GIB


def test_a_cgroup_of_version_1_limits_ram_and_cores(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/job"
    files = {
        "proc/self/cgroup": "9:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/x\n",
        f"{group}/memory.limit_in_bytes": f"{128 * GIB}\n",
        f"{group}/memory.usage_in_bytes": f"{100 * GIB}\n",
        f"{group}/memory.stat": f"total_inactive_file {90 * GIB}\ninactive_file 1\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "600000\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    }
    found = probe_hardware(machine(tmp_path, files), affinity=range(16))
    assert (found.ram_bytes, found.cgroup_bytes) == (128 * GIB, 128 * GIB)
    assert (found.ram_available, found.cpus) == (118 * GIB, 6)


def test_a_limit_above_the_hosts_ram_changes_nothing(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{4096 * GIB}\n"}
    found = probe_hardware(machine(tmp_path, files))
    assert (found.ram_bytes, found.ram_available) == (512 * GIB, 500 * GIB)


@pytest.mark.parametrize("garbage", ["", "\0\0", "many words here\n", "0::\n::::\nnot a line"])
def test_files_that_say_nonsense_are_as_good_as_absent(tmp_path: Path, garbage: str) -> None:
    names = [
        "proc/self/cgroup",
        "proc/cpuinfo",
        "sys/fs/cgroup/memory.max",
        "sys/fs/cgroup/cpu.max",
    ]
    found = probe_hardware(machine(tmp_path, dict.fromkeys(names, garbage)), affinity={0})
    assert (found.ram_bytes, found.cpus, found.physical_cores) == (512 * GIB, 1, 1)


def test_torch_is_asked_for_gpus_only_where_a_driver_is(tmp_path: Path) -> None:
    assert probe_hardware(machine(tmp_path, {})).gpus == ()
    gpu = Gpu("cuda:0", "Fake", 24 * GIB, 23 * GIB)
    found = probe_hardware(tmp_path, find_gpus=lambda root: (gpu,))
    assert found.vram == {"cuda:0": 23 * GIB}
    assert found.describe_gpus() == "found cuda:0 (Fake)"


def test_the_machine_the_tests_run_on_can_be_probed() -> None:
    found = probe_hardware()
    assert 0 < found.ram_available <= found.ram_bytes
    assert found.cpus >= 1 and found.physical_cores >= 1
