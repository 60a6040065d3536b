"""Where workers sit: the topology as a system of any shape writes it, and their spread over it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_k2.backends.numa import WorkerPlaces, numa_nodes, worker_places

TWO_SOCKETS = [tuple(range(8)), tuple(range(8, 16))]


@pytest.fixture
def system(tmp_path):
    """Writes a system whose nodes have these lists of CPUs."""

    def write(**cpulists):
        for name, cpulist in cpulists.items():
            folder = tmp_path / "sys/devices/system/node" / name
            folder.mkdir(parents=True)
            (folder / "cpulist").write_text(cpulist)
        return tmp_path

    return write


def test_nodes_are_read_in_the_order_of_their_numbers(system):
    root = system(node10="6-7\n", node0="0,2-3\n", node2="4\n")
    assert numa_nodes(root, range(16)) == [(0, 2, 3), (4,), (6, 7)]


def test_a_node_without_cpus_that_this_process_may_use_does_not_count(system):
    root = system(node0="0-3\n", node1="4-7\n", node2="\n")
    assert numa_nodes(root, {1, 2}) == [(1, 2)]


@pytest.mark.parametrize("nonsense", ["all", "0-", "3-x", "\x00", "-1"])
def test_a_list_that_is_none_counts_as_no_cpus(system, nonsense):
    assert numa_nodes(system(node0=nonsense), range(8)) == []


def test_a_system_that_says_nothing_has_no_nodes(tmp_path):
    assert numa_nodes(tmp_path, range(8)) == []


@pytest.mark.parametrize("nodes", [[], [(0, 1, 2, 3)]])
def test_workers_of_one_memory_are_not_pinned(nodes):
    assert worker_places(4, nodes) == WorkerPlaces()


def test_workers_are_spread_evenly_and_sorted_by_node():
    places = worker_places(6, TWO_SOCKETS)
    assert places == WorkerPlaces((0, 1, 2, 8, 9, 10), (0, 0, 0, 1, 1, 1))


def test_a_full_node_leaves_its_workers_to_the_others():
    places = worker_places(5, [(0,), (1, 2, 3, 4)])
    assert places == WorkerPlaces((0, 1, 2, 3, 4), (0, 1, 1, 1, 1))


def test_more_workers_than_cpus_are_not_pinned():
    assert worker_places(17, TWO_SOCKETS) == WorkerPlaces()


@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 9), max_size=7),
)
def test_every_worker_has_a_cpu_of_its_own_on_its_node(num_threads, sizes):
    firsts = [sum(sizes[:n]) for n in range(len(sizes))]
    nodes = [tuple(range(first, first + size)) for first, size in zip(firsts, sizes, strict=True)]
    places = worker_places(num_threads, nodes)
    if places.cpus:
        assert len(places.cpus) == len(places.nodes) == num_threads
        assert len(set(places.cpus)) == num_threads
        assert sorted(set(places.nodes)) == list(range(min(num_threads, len(nodes))))
        assert all(cpu in nodes[node] for cpu, node in zip(places.cpus, places.nodes, strict=True))
