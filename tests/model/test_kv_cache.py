"""The latent cache: growing, truncating and copying keep exactly the tokens they should."""

import pytest
import torch

from hybrid_k2.model.kv_cache import LatentCache


def cache_with(num_tokens: int, dtype: torch.dtype = torch.float32) -> LatentCache:
    cache = LatentCache([(torch.device("cpu"), dtype)] * 2, latent_dim=3, first_rows=4)
    cache.reserve(num_tokens)
    for layer_idx in range(2):
        rows = torch.arange(3.0 * num_tokens).view(-1, 3) + 100 * layer_idx
        cache.write(layer_idx, 0, rows)
    cache.length = num_tokens
    return cache


def test_written_rows_come_back_with_all_before_them():
    cache = cache_with(2)
    seen = cache.write(1, 2, torch.tensor([[7.0, 8.0, 9.0]]))
    assert seen.tolist() == [[100, 101, 102], [103, 104, 105], [7, 8, 9]]


@pytest.mark.parametrize("num_tokens", [3, 4, 5, 100])
def test_growing_keeps_every_row(num_tokens):
    cache = cache_with(3)
    cache.reserve(num_tokens)
    seen = cache.write(0, 3, torch.empty(0, 3))
    assert seen.flatten().tolist() == list(range(9))


def test_growing_doubles_so_that_a_long_answer_copies_little():
    cache = cache_with(4)
    cache.reserve(5)
    assert cache.num_bytes == 2 * 8 * 3 * 4


def test_truncate_forgets_the_tail_and_never_lengthens():
    cache = cache_with(5)
    cache.truncate(2)
    assert cache.length == 2
    cache.truncate(4)
    assert cache.length == 2


def test_a_copy_shares_nothing_with_its_original():
    cache = cache_with(5, torch.bfloat16)
    other = cache.copy(2)
    cache.write(0, 0, torch.zeros(5, 3))
    assert other.length == 2
    assert other.write(0, 2, torch.empty(0, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
