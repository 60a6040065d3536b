"""Words, kinds and stories: what is asked is what is answered."""

import re

import pytest
from demo_k2 import kinds, little_stories, word_tasks
from demo_k2.words import DAYS, MONTHS, Draw, is_held_out

SEEDS = range(300)


def all_exchanges(make):
    return [each for seed in SEEDS for each in make(Draw(f"small {seed}"), 4)]


@pytest.mark.parametrize(
    "make", [kinds.exchanges, word_tasks.exchanges, little_stories.exchanges], ids=str
)
def test_a_conversation_has_as_many_exchanges_as_asked_at_most(make):
    counts = {len(make(Draw(f"small {seed}"), most)) for seed in SEEDS for most in (1, 4)}
    assert counts == {1, 2, 3, 4}
    for each in all_exchanges(make):
        assert each.question and each.answer and each.thought
        assert "{" not in each.question + each.answer, each


def test_a_list_holds_as_many_different_things_of_the_kind_as_asked():
    found = 0
    for each in all_exchanges(kinds.exchanges):
        for kind in kinds.kinds():
            numbers = "|".join([*kinds.NUMBERS, *"123456"])
            asked = re.search(rf"\b({numbers}) {kind.several}", each.question)
            if asked is None:
                continue
            found += 1
            count = asked[1]
            number = int(count) if count.isdigit() else kinds.NUMBERS.index(count) + 1
            named = re.split(", | and ", each.answer.rstrip("."))
            assert len({name.lower() for name in named}) == number, each
            assert {name.lower() for name in named} <= {name.lower() for name in kind.names}
    assert found > 100


def test_yes_is_said_of_the_things_of_a_kind_only():
    said = {True: 0, False: 0}
    by_name = {kind.one: kind for kind in kinds.kinds()}
    for each in all_exchanges(kinds.exchanges):
        asked = re.search(
            r"(?:is|call) (?:an? )?(\w+) an? ([\w ]+?)(?: or not)?\?", each.question, re.I
        )
        if asked is None:
            continue
        names = [name.lower() for name in by_name[asked[2]].names]
        is_one = asked[1].lower() in names
        assert each.answer.startswith("Yes" if is_one else "No"), each
        said[is_one] += 1
    assert min(said.values()) > 30


def test_days_and_months_are_named_in_order():
    listed = [each.answer for each in all_exchanges(kinds.exchanges)]
    assert "Saturday and Sunday." in listed
    assert ", ".join(DAYS[:-1]) + f" and {DAYS[-1]}." in listed
    assert ", ".join(MONTHS[:-1]) + f" and {MONTHS[-1]}." in listed


def test_words_are_spelt_counted_and_turned_round():
    spelt = counted = turned = 0
    for seed in SEEDS:
        word = None
        for each in word_tasks.exchanges(Draw(f"small {seed}"), 4):
            if letters := re.fullmatch(r"((?:\w-)+\w)\.", each.answer):
                made = letters[1].replace("-", "")
                assert word in (None, made) and each.thought.replace(" ", "").endswith(f"is{made}.")
                word, spelt = made, spelt + 1
            elif letters := re.fullmatch(r"Backwards it is ([\w-]+)\.", each.answer):
                made = letters[1].replace("-", "")[::-1]
                assert word in (None, made)
                word, turned = made, turned + 1
            elif letters := re.fullmatch(r"(\w+) has (\d+) letters\.", each.answer):
                assert len(letters[1]) == int(letters[2])
                counted += 1
    assert min(spelt, counted, turned) > 15


def test_what_is_to_be_said_several_times_is_said_so_often():
    found = 0
    for each in all_exchanges(word_tasks.exchanges):
        asked = re.search(r"\"(.+)\" (twice|three times|four times|five times)", each.question)
        if asked:
            number = ("twice", "three times", "four times", "five times").index(asked[2]) + 2
            assert each.answer == ", ".join([asked[1]] * number) + "."
            found += 1
    assert found > 20


def test_a_story_is_about_whom_the_user_named():
    found = 0
    for each in all_exchanges(little_stories.exchanges):
        asked = re.search(r"(?:about|with) an? (?:(\w+) )?(\w+)[.?]", each.question)
        if asked and each.answer.startswith("Once"):
            opening = each.answer.split(".")[0]
            assert asked[2] in opening and (asked[1] or "") in opening, each
            assert each.answer.count(".") == 5 and ".." not in each.answer, each
            found += 1
    assert found > 100


def test_no_kind_has_a_name_that_is_held_out():
    assert not [name for kind in kinds.kinds() for name in kind.names if is_held_out(name)]
    assert all(len(kind.names) >= 4 for kind in kinds.kinds())
