"""Sets of layers and sizes in words: against Python's own sets, over many generated cases."""

import random

import pytest

from hybrid_k2.rules.layers import format_layers, parse_layers
from hybrid_k2.rules.sizes import format_size, parse_size


@pytest.mark.parametrize("seed", range(50))
def test_what_is_formatted_reads_back_as_the_same_layers(seed: int) -> None:
    generator = random.Random(seed)
    layers = {generator.randrange(61) for _ in range(generator.randrange(1, 61))}
    parsed = parse_layers(format_layers(layers))
    assert {layer for layer in range(100) if layer in parsed} == layers
    assert parsed.highest == max(layers)


@pytest.mark.parametrize("seed", range(50))
def test_a_list_of_ranges_is_their_union_in_any_order_and_spacing(seed: int) -> None:
    generator = random.Random(seed)
    expected: set[int] = set()
    parts = []
    for _ in range(generator.randrange(1, 8)):
        first = generator.randrange(100)
        last = first + generator.choice([0, 1, 7, 40])
        expected |= set(range(first, last + 1))
        space = " " * generator.randrange(3)
        single = first == last and generator.random() < 0.5
        parts.append(f"{space}{first}" if single else f"{first}{space}-{last}{space}")
    parsed = parse_layers(",".join(parts))
    assert {layer for layer in range(200) if layer in parsed} == expected


def test_an_open_range_reaches_every_later_layer() -> None:
    parsed = parse_layers("0,30-")
    assert 0 in parsed and 29 not in parsed and 30 in parsed and 5000 in parsed
    assert parsed.highest == 30


def test_a_module_without_a_layer_is_in_no_set() -> None:
    assert None not in parse_layers("0-")


@pytest.mark.parametrize(
    "text",
    ["", ",", "1,", "-", "-3", "1-2-3", "a", "1.5", "0x3", "1:30", "5-3", "1 2", "99999", "²", "٣"],
)
def test_a_bad_layer_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="layers"):
        parse_layers(text)


def test_a_range_that_runs_backwards_is_answered_with_the_one_meant() -> None:
    with pytest.raises(ValueError, match="write 3-5"):
        parse_layers("5-3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 << 30),
        ("24 gib", 24 << 30),
        ("512GB", 512 * 10**9),
        ("1.5TB", 1_500_000_000_000),
        ("1024", 1024),
        ("0", 0),
    ],
)
def test_a_size_in_words_is_its_bytes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "24G", "-1GiB", "1e3GB", "24 GiBs", "1" * 40, "nan"])
def test_a_bad_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="24GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (570_760_888_320, "570.8 GB"),
        (1_029_000_000_000, "1029.0 GB"),
        (12 * 10**12, "12.0 TB"),
    ],
)
def test_bytes_are_written_as_people_say_them(num_bytes: int, text: str) -> None:
    assert format_size(num_bytes) == text
