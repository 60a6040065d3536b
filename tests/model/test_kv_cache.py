"""The paged latent cache: growing, sharing, copying and truncating keep exactly the tokens that
they should, and pages are neither lost nor owned twice.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybrid_k2.model.kv_cache import LatentCache, PagePool
from hybrid_k2.model.pages import PAGE_TOKENS, OutOfPages, PageAllocator, pages_of

NUM_LAYERS = 2


def open_pool(num_pages: int = 8, dtype: torch.dtype = torch.float32) -> PagePool:
    return PagePool([(torch.device("cpu"), dtype)] * NUM_LAYERS, latent_dim=3, num_pages=num_pages)


def rows(first: int, num_tokens: int, layer_idx: int = 0) -> torch.Tensor:
    """Numbers that say token, layer and column."""
    tokens = torch.arange(first, first + num_tokens)[:, None]
    return (tokens + 0.25 * torch.arange(3) + 1000 * layer_idx).float()


def append(cache: LatentCache, num_tokens: int, first: int | None = None) -> None:
    start = cache.length
    cache.reserve(start + num_tokens)
    for layer_idx in range(NUM_LAYERS):
        written = rows(start if first is None else first, num_tokens, layer_idx)
        cache.write(layer_idx, start, written)
    cache.length += num_tokens


def share(cache: LatentCache, num_tokens: int) -> LatentCache:
    other = cache.pool.new_cache()
    other.adopt(cache.page_ids[: pages_of(num_tokens)], num_tokens)
    return other


def read(cache: LatentCache, layer_idx: int = 0) -> torch.Tensor:
    return torch.cat(cache.read(layer_idx, cache.length))


@pytest.mark.parametrize("steps", [[1], [63, 1, 1], [64, 64], [200], [1] * 70, [100, 30, 70]])
def test_rows_come_back_as_they_were_written_in_every_layer(steps):
    cache = open_pool().new_cache()
    for num_tokens in steps:
        append(cache, num_tokens)
    for layer_idx in range(NUM_LAYERS):
        assert torch.equal(read(cache, layer_idx), rows(0, sum(steps), layer_idx))
    assert len(cache.page_ids) == pages_of(sum(steps))


def test_a_sequence_that_grows_undisturbed_is_read_as_one_view_of_the_pool():
    pool = open_pool()
    cache = pool.new_cache()
    for _ in range(5):
        append(cache, 50)
    (seen,) = cache.read(1, 250)
    first = pool.pages[1][cache.page_ids[0]]
    assert seen.data_ptr() == first.data_ptr() and seen.shape == (250, 3)


def test_two_growing_sequences_stay_in_one_piece_each():
    pool = open_pool(num_pages=16)
    caches = [pool.new_cache(), pool.new_cache()]
    for _ in range(6):
        for cache in caches:
            append(cache, PAGE_TOKENS)
    assert [len(cache.read(0, cache.length)) for cache in caches] == [1, 1]


def test_pages_here_and_there_are_read_in_the_sequences_order():
    pool = open_pool(num_pages=6)
    holes = pool.allocate(6)
    pool.free([holes[1], holes[2], holes[4]])
    cache = pool.new_cache()
    append(cache, 150)
    assert [len(part) for part in cache.read(0, 150)] in ([128, 22], [64, 86])
    append(cache, 42)
    assert torch.equal(read(cache), rows(0, 192))


def test_what_does_not_fit_is_refused_whole():
    pool = open_pool(num_pages=3)
    cache = pool.new_cache()
    append(cache, 70)
    before = list(cache.page_ids)
    with pytest.raises(OutOfPages) as caught:
        cache.reserve(70 + 3 * PAGE_TOKENS)
    assert caught.value.num_missing == 2
    assert (cache.page_ids, pool.num_free) == (before, 1)
    assert torch.equal(read(cache), rows(0, 70))


@pytest.mark.parametrize("num_tokens", [1, 64, 70, 128])
def test_sharing_a_prefix_costs_no_page_until_it_is_written_to(num_tokens):
    pool = open_pool()
    cache = pool.new_cache()
    append(cache, 130)
    other = share(cache, num_tokens)
    assert pool.num_free == 5
    append(other, 10, first=500)
    assert torch.equal(read(cache), rows(0, 130))
    expected = torch.cat([rows(0, num_tokens), rows(500, 10)])
    assert torch.equal(read(other), expected)
    assert not any(map(pool.is_shared, other.page_ids[num_tokens // PAGE_TOKENS :]))


def test_a_copy_on_write_that_finds_no_page_changes_nothing():
    pool = open_pool(num_pages=1)
    cache = pool.new_cache()
    append(cache, 10)
    other = share(cache, 5)
    with pytest.raises(OutOfPages):
        other.reserve(6)
    assert other.page_ids == cache.page_ids
    cache.release()
    append(other, 3, first=500)  # alone on its page now
    assert torch.equal(read(other), torch.cat([rows(0, 5), rows(500, 3)]))


def test_a_page_can_be_replaced_by_another_of_the_same_contents():
    pool = open_pool()
    caches = [pool.new_cache(), pool.new_cache()]
    for cache in caches:
        append(cache, 100)
    caches[1].replace_page(0, caches[0].page_ids[0])
    assert pool.num_free == 5
    append(caches[1], 1)
    assert torch.equal(read(caches[1]), rows(0, 101))
    caches[0].release()
    assert torch.equal(read(caches[1]), rows(0, 101))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_of_pages_put_back_elsewhere_are_the_same_tokens(dtype):
    pool = open_pool(dtype=dtype)
    cache = pool.new_cache()
    append(cache, 128)
    data = pool.read_pages(cache.page_ids)
    assert data.shape == (2, pool.page_bytes)
    other = pool.new_cache()
    other.reserve(128)
    pool.write_pages(other.page_ids, data)
    other.length = 128
    for layer_idx in range(NUM_LAYERS):
        assert torch.equal(read(other, layer_idx), read(cache, layer_idx))


def test_truncate_frees_pages_and_never_lengthens():
    pool = open_pool()
    cache = pool.new_cache()
    append(cache, 200)
    cache.truncate(65)
    assert (cache.length, pool.num_free) == (65, 6)
    cache.truncate(100)
    assert cache.length == 65
    cache.release()
    assert (cache.length, pool.num_free) == (0, 8)


def test_a_page_in_the_pools_number_format_is_counted_in_its_bytes():
    assert open_pool(dtype=torch.bfloat16).page_bytes == NUM_LAYERS * PAGE_TOKENS * 3 * 2


operations = st.lists(
    st.tuples(
        st.sampled_from(["append", "share", "truncate", "release"]),
        st.integers(0, 9),
        st.integers(1, 150),
    ),
    max_size=30,
)


@given(operations)
def test_any_history_keeps_every_sequences_tokens_and_every_page(operations):
    """Against lists of numbers: each cache reads what its history wrote, whoever shares it."""
    pool = open_pool(num_pages=10)
    caches: list[tuple[LatentCache, list[float]]] = [(pool.new_cache(), [])]
    for step, (what, which, number) in enumerate(operations):
        cache, expected = caches[which % len(caches)]
        if what == "append":
            try:
                append(cache, number, first=1000 * step)
            except OutOfPages:
                continue
            expected += range(1000 * step, 1000 * step + number)
        elif what == "share":
            caches.append((share(cache, min(number, cache.length)), expected[:number]))
        elif what == "truncate":
            cache.truncate(number)
            del expected[number:]
        else:
            cache.release()
            expected.clear()
        for cache, expected in caches:
            seen = read(cache)[:, 0].tolist() if cache.length else []
            assert seen == [float(value) for value in expected]
    owned = [page_id for cache, _ in caches for page_id in cache.page_ids]
    assert [owned.count(page_id) for page_id in range(10)] == pool.owners.tolist()
    assert pool.num_free == 10 - len(set(owned))


@given(st.lists(st.integers(-5, 5), max_size=40))
def test_the_allocator_hands_out_each_page_once(requests):
    """Positive numbers allocate, negative ones free the oldest that are held."""
    allocator = PageAllocator(12)
    held: list[int] = []
    for number in requests:
        if number <= 0:
            allocator.free(held[:-number])
            del held[:-number]
        elif number <= 12 - len(held):
            held += allocator.allocate(number, after=held[-1] if held else None)
        else:
            with pytest.raises(OutOfPages):
                allocator.allocate(number)
        assert len(set(held)) == len(held)
        assert allocator.num_free == 12 - len(held)
