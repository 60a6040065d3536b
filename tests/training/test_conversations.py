"""Free conversations: replies take up what was said, later answers follow from earlier ones."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from demo_k2 import chains, conversations, moves, patterns, statements, tables
from demo_k2.knowledge import Exchange
from demo_k2.words import CITIES, NAMES, Draw, is_held_out

PIECES = ["Gre", "ta", "pai", "bour", "zo", "umbrella", "Tai", "ck", "Hel", "ste"]
SUBJECTS = list(statements.subjects())
SUM = re.compile(r"(?<![\d-] )\b(\d+(?: [-+x/] \d+)+) = (\d+)")


@cache
def drawn() -> list[list[Exchange]]:
    return [conversations.conversation(Draw(f"test {n}", pieces=PIECES)) for n in range(400)]


def plain(text: str) -> str:
    return patterns.bare(re.sub(r"\b(?:an?|the) ", "", text))


def test_a_number_stands_for_one_conversation() -> None:
    for number in range(20):
        again = conversations.conversation(Draw(f"test {number}", pieces=PIECES))
        assert again == drawn()[number]


def test_conversations_have_several_turns_and_an_end() -> None:
    lengths = Counter(len(made) for made in drawn())
    assert max(lengths) <= conversations.LONGEST
    assert sum(count for length, count in lengths.items() if length >= 3) > 0.9 * len(drawn())


def test_no_mark_of_a_pattern_is_left_in_what_is_said() -> None:
    for made in drawn():
        for each in made:
            text = f"{each.question}{each.answer}"
            assert not re.search(r"[{}|]|<\w+>|[\ue000-\ue0ff]", text), text
            assert each.question.strip() == each.question and each.answer[0].strip()


def test_there_are_hundreds_of_shapes() -> None:
    subjects = statements.subjects().values()
    assert len(subjects) > 60
    assert sum(len(each.told) for each in subjects) > 150
    assert sum(len(each.questions_back) for each in subjects) > 120
    assert sum(len(each.recalls) for each in subjects) > 120
    assert len(tables.tables()) > 50 and len(chains.explained()) > 50


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_reply_takes_up_a_word_that_was_said(name: str) -> None:
    subject = replace(statements.subjects()[name], corrections=[])
    seen = taken_up = 0
    for seed in range(100):
        telling = statements.Telling(subject)
        made = telling.exchanges(Draw(f"{name} {seed}"))
        said = [word for word in telling.slots.values() if made and word in made[0].question]
        seen += bool(said)
        taken_up += any(plain(word) in plain(made[0].answer) for word in said)
    assert seen > 15 and taken_up > 0.75 * seen


@pytest.mark.parametrize("name", SUBJECTS)
def test_what_was_told_is_what_is_remembered(name: str) -> None:
    seen = 0
    for seed in range(80):
        draw = Draw(f"{name} {seed}")
        telling = statements.Telling(statements.subjects()[name])
        said = plain(" ".join(each.question for each in telling.exchanges(draw)))
        found = telling.recall(draw)
        if found:
            seen += 1
            values = [word for word in telling.slots.values() if plain(word) in plain(found.answer)]
            assert values and all(plain(word) in said for word in values), (said, found)
    assert seen > 15


def test_a_correction_holds_from_then_on() -> None:
    seen = 0
    for seed in range(400):
        draw = Draw(seed)
        telling = statements.Telling(statements.subjects()["pet"])
        made = telling.exchanges(draw)
        if made and made[-1].thought == "A correction.":
            seen += 1
            assert telling.slots["petname"] in made[-1].answer
            assert not any(name.endswith("2") for name in telling.slots)
    assert seen > 10


def test_nothing_is_made_up_about_what_was_not_told() -> None:
    for seed in range(200):
        draw = Draw(seed)
        telling = statements.telling(draw)
        found = statements.unknown(draw, [telling]) if telling.exchanges(draw) else None
        assert found is None or re.search(r"not (told|said|mention)", found.answer)


def test_two_subjects_of_a_conversation_are_not_mistaken_for_each_other() -> None:
    for seed in range(300):
        draw = Draw(seed)
        first = statements.telling(draw)
        second = statements.telling(draw, [first])
        assert not first.subject.groups & second.subject.groups


def test_a_question_back_is_asked_once() -> None:
    for made in drawn():
        asked = [
            sentence
            for each in made
            for sentence in re.findall(r"[^.!?]+\?", each.answer)
            if each.thought.startswith(("The user tells", "That answers"))
        ]
        assert len(asked) == len(set(asked)), made


def test_every_sum_that_goes_on_is_right() -> None:
    seen = 0
    for seed in range(300):
        made = chains.sums(Draw(seed))
        for before, each in zip([None, *made], made, strict=False):
            for sum_, result in SUM.findall(f"{each.thought} {each.answer}"):
                seen += 1
                assert eval(sum_.replace("x", "*")) == int(result), each
            if before and re.match(r"\d+ [-+x/]", each.answer):
                assert re.findall(r"\d+", each.answer)[0] in re.findall(r"\d+", before.answer)
    assert seen > 500


def test_half_of_a_number_is_taken_place_by_place() -> None:
    for value in range(2, 1000, 2):
        assert chains.halved(value).endswith(f" = {value // 2}.")


def test_lists_go_on_with_what_they_hold() -> None:
    for seed in range(300):
        named: list[str] = []
        for made in chains.lists(Draw(seed)):
            if made.thought == "Another one.":
                named.append(made.answer.rstrip(".").lower())
            elif made.answer.startswith("These are"):
                assert made.answer == f"These are {len(named)}."
            elif " one was " in made.answer:
                assert made.answer.rstrip(".").split(" one was ")[1].lower() in named
            elif "is the longest" in made.answer:
                longest = made.answer.split(" is the longest")[0].lower()
                assert all(len(longest) > len(name) for name in named if name != longest)
            elif not made.answer.startswith(("Yes:", "No:")):
                named = re.split(r", | and ", made.answer.rstrip(".").lower())


def test_orders_hold_for_every_pair() -> None:
    seen = 0
    for seed in range(600):
        for made in tables.exchanges(Draw(seed)):
            found = re.fullmatch(r"(.+) is (\w+(?: (?:from|to) the sun)?) than (.+)\.", made.answer)
            if not found or " both " in made.answer or ", but " in made.answer:
                continue
            for table in tables.tables():
                items = [row[0].lower() for row in table.rows]
                first, word, second = (part.lower() for part in found.groups())
                if first in items and second in items and word in table.title:
                    seen += 1
                    is_more = items.index(first) > items.index(second)
                    assert is_more == (word == table.title[0]), made.answer
    assert seen > 30


def test_what_follows_in_a_row_is_its_neighbour() -> None:
    rows = [
        [row[0].lower() for row in table.rows] for table in tables.tables() if table.kind == "row"
    ]
    seen = 0
    for seed in range(600):
        for made in tables.exchanges(Draw(seed)):
            found = re.fullmatch(r"(\w+) comes (after|before) (\w+)\.", made.answer)
            if found:
                seen += 1
                a, b = found[1].lower(), found[3].lower()
                step = 1 if found[2] == "after" else -1
                # "X" is a letter and a number.
                assert any(
                    {a, b} <= set(row) and (row.index(a) - row.index(b) - step) % len(row) == 0
                    for row in rows
                ), made
    assert seen > 40


@pytest.mark.parametrize("table", tables.tables(), ids=lambda table: table.name)
def test_a_short_question_goes_on_about_another_row(table: tables.Table) -> None:
    assert len({row[0] for row in table.rows}) == len(table.rows) >= 4
    if table.kind == "pairs":
        assert all(len(row) == 2 for row in table.rows)
        assert table.questions and table.answers and table.next_forms and table.asks_for
        if table.counted or table.has_years:
            assert all(row[1].isdigit() for row in table.rows)


def test_the_same_is_said_once_more_and_shorter_by_its_first_sentence() -> None:
    answer = "The capital of France is Paris. It is large."
    seen = Counter()
    for seed in range(200):
        for made in moves.about_answer(answer, Draw(seed)):
            seen[made.answer] += 1
            assert "apital of France is Paris." in made.answer
    assert seen[answer] > 40 and seen["The capital of France is Paris."] > 20


def test_nothing_held_out_is_in_a_training_conversation() -> None:
    held_out = {word for word in CITIES + NAMES if is_held_out(word)}
    held_out -= {"Nice", "Jack", "Mark", "Hans"}  # other words, and an author's name
    for made in drawn():
        for each in made:
            # A slip makes "Greta" of "Great", so what the user types is looked at below.
            if not each.answer.startswith("You "):
                assert not held_out.intersection(re.split(r"[^\w]+", each.answer)), each
    for name in SUBJECTS:
        for seed in range(20):
            telling = statements.Telling(statements.subjects()[name])
            telling.exchanges(Draw(f"{name} {seed}", pieces=PIECES))
            assert not held_out.intersection(telling.slots.values())


def test_wordings_that_are_held_out_are_never_said_in_training() -> None:
    choices = [f"{{one|two|three|four|five|six|seven}} {word}" for word in ("dogs", "cats")]
    said = {
        patterns.bare(patterns.said(choices, Draw(seed, held_out=True), {}) or "")
        for seed in range(100)
    }
    kept = {
        patterns.bare(f"{number} {word}")
        for number in "one two three four five six seven".split()
        for word in ("dogs", "cats")
        if is_held_out(f"{number} {word}")
    }
    assert kept and kept <= said
    for seed in range(100):
        assert patterns.bare(patterns.said(choices, Draw(seed), {}) or "") not in kept


def test_facts_about_hybrid_k2_come_only_where_they_are_asked_for() -> None:
    answers = Counter()
    for seed in range(200):
        draw = Draw(seed)
        for made in statements.telling(draw).exchanges(draw) + tables.exchanges(draw):
            assert not re.search(r"hybrid|Kimi|GGUF|KTransformers", made.answer), made
            answers[made.answer] += 1
    assert len(answers) > 300


def test_answers_to_what_people_tell_are_short() -> None:
    for seed in range(300):
        draw = Draw(seed)
        for made in statements.telling(draw).exchanges(draw):
            assert len(made.answer) < 200, made.answer


def test_an_article_fits_the_word_that_fills_its_slot() -> None:
    slots = {"animal": "owl", "pet": "dog"}
    assert patterns.fill("a <animal> and a <pet>", Draw(1), slots) == "an owl and a dog"


def test_every_move_of_the_file_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = set()

    class Recorder(dict):
        def __getitem__(self, name):
            made.add(name)
            return super().__getitem__(name)

    recorder = Recorder(moves.wordings())
    monkeypatch.setattr(moves, "wordings", lambda: recorder)
    for number in range(2000):
        draw = Draw(number)
        conversations.conversation(draw)
        for _ in range(4):  # a few moves are rare
            tables.exchanges(draw)
            chains.explanations(draw)
    assert made == set(recorder)
