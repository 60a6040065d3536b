"""What must hold of pages between any two steps, checked from the outside.

Counts owners itself; knows the engine's private parts, which no test should touch otherwise.
"""

from collections import Counter
from typing import Any

from hybrid_k2.engine import EngineCore
from hybrid_k2.model.pages import pages_of


def check_pages(engine: EngineCore) -> None:
    """Every owner is known, no page is lost, and what may be written to has one owner."""
    prefix_cache, pool = engine._prefix_cache, engine._prefix_cache._pool
    sequences = engine._scheduler.running
    owners: Counter[int] = Counter()
    for sequence in sequences:
        owners.update(sequence.cache.page_ids)
        assert len(set(sequence.cache.page_ids)) == len(sequence.cache.page_ids)
        assert len(sequence.cache.page_ids) >= pages_of(sequence.cache.length)
    disk = prefix_cache._disk
    if disk is not None:
        with disk._changed:
            jobs = [*disk._queue, *disk._finished]
            if disk._current is not None and not disk._current.is_given_up:
                jobs.append(disk._current)
        for job in jobs:
            owners.update(job.page_ids)
    held = set(owners)
    owners.update(node.page_id for node in prefix_cache._in_pool)
    assert [owners[page_id] for page_id in range(pool.num_pages)] == pool.owners.tolist()
    assert pool.num_free == pool.num_pages - len(owners)
    _check_tree(prefix_cache, held)


def _check_tree(prefix_cache: Any, held: set[int]) -> None:
    """Nodes are in one tier each; before one in the pool, or in use, come only such."""
    in_pool, in_ram = set(), set()
    below = [node for root in prefix_cache._roots.values() for node in root.children.values()]
    while below:
        node = below.pop()
        below += node.children.values()
        for child in node.children.values():
            assert child.parent is node
            assert child.page_id is None or node.page_id is not None
            assert child.page_id not in held or node.page_id in held
        assert (node.page_id is None) != (node.ram is None)
        (in_ram if node.page_id is None else in_pool).add(node)
        keys = [key for key in node.children if node.is_whole]
        assert not any(a != b and a.startswith(b) for a in keys for b in keys)
    assert in_pool == set(prefix_cache._in_pool)
    assert in_ram == set(prefix_cache._in_ram)
