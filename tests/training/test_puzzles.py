"""What the model is shown as reasoning is right: every sum in it, every order, every ending."""

import re

import pytest
from demo_k2 import puzzles
from demo_k2.words import Draw

KINDS = list(dict.fromkeys(puzzles.KINDS))
SPELT = (puzzles.letters, puzzles.spelling)  # their answers are not written like their thoughts
SUM = re.compile(r"(?<![\d-] )\b(\d+(?: [-+x/] \d+)+) = (\d+)")


def drawn(kind, count: int = 150):
    draw = Draw(kind.__name__)
    return [kind(draw) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_sum_in_a_thought_is_right(kind) -> None:
    for made in drawn(kind):
        for sum_, result in SUM.findall(f"{made.thought} {made.answer}"):
            assert eval(sum_.replace("x", "*")) == int(result), made.thought


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in SPELT])
def test_the_last_sentence_of_a_thought_holds_the_answer(kind) -> None:
    for made in drawn(kind):
        numbers = re.findall(r"\d+", made.answer)
        last = made.thought.rstrip(".").split(". ")[-1]
        assert (numbers[-1] if numbers else made.answer.rstrip(".")) in last


def test_columns_of_a_subtraction_are_the_digits_of_the_difference() -> None:
    for a in range(1, 1200, 7):
        for b in range(0, a + 1, 3):
            columns = re.findall(
                r"(?:ones|tens|hundreds|thousands): ([^.]*)\.", puzzles.subtracted(a, b)
            )
            digits = [int(column.rpartition("= ")[2]) for column in columns]
            assert sum(digit * 10**place for place, digit in enumerate(digits)) == a - b
            assert all(0 <= digit <= 9 for digit in digits)


def test_spelt_letters_are_those_of_the_word() -> None:
    for made in drawn(puzzles.spelling) + drawn(puzzles.letters):
        word, spelt = re.match(r"(\w+) is ((?:\w )*\w)\.", made.thought).groups()
        assert spelt.split() == list(word)
        if "ackwards" in made.answer:
            assert made.answer == f"Backwards it is {'-'.join(reversed(word))}."


@pytest.mark.parametrize("kind, choose", [("largest", max), ("smallest", min)])
def test_the_running_best_is_kept(kind: str, choose) -> None:
    for made in drawn(puzzles.extreme):
        if kind not in made.question:
            continue
        values = [int(number) for number in re.findall(r"\d+", made.question)]
        kept = [int(n) for n in re.findall(r": (\d+) is", made.thought)]
        assert kept == [choose(values[: count + 1]) for count in range(1, len(values))]
        assert made.answer == f"The {kind} is {choose(values)}."


def test_an_inserted_list_is_sorted_at_every_step() -> None:
    for made in drawn(puzzles.sorting):
        lists = [
            [int(n) for n in text.split(", ")]
            for text in re.findall(r": ([\d, ]+)\.", made.thought)
        ]
        down = "large to small" in made.question
        assert all(numbers == sorted(numbers, reverse=down) for numbers in lists)
        assert made.answer == ", ".join(map(str, lists[-1])) + "."


def test_a_comparison_names_the_larger_and_the_smaller() -> None:
    for made in drawn(puzzles.comparison):
        if "Digit" not in made.thought and "digit" not in made.thought:
            continue
        larger, smaller = map(
            int, re.search(r"(\d+) is larger, (\d+) is smaller", made.thought).groups()
        )
        assert larger > smaller
        assert made.answer == f"{larger} is larger." or made.answer == f"{smaller} is smaller."
