"""The demo model's training text: reproducible, held out cleanly, and in K2's own format.

What templates draw is read back with hybrid-k2's parser and checked against the declared schemas.
"""

import difflib
import json
import re
from collections import Counter
from functools import cache

import pytest
from demo_k2 import dialogues, evaluate, knowledge, patterns, tools, vocabulary, world
from demo_k2.encode import Encoder, last_question
from demo_k2.samples import FULL_WEIGHT
from demo_k2.typing_slips import as_people_type
from demo_k2.words import CITIES, NAMES, Draw, is_held_out

from hybrid_k2.text.markers import IM_END

TYPES = {"string": str, "integer": int, "number": int}
NUMBERS = range(400)


@cache
def drawn(held_out: bool = False) -> list[dialogues.Dialogue]:
    return [dialogues.dialogue(number, held_out) for number in NUMBERS]


@cache
def encoder() -> Encoder:
    texts = [message["content"] for made in drawn() for message in made.messages]
    texts += [json.dumps(made.tools) for made in drawn()]
    return Encoder(vocabulary.tokenizer_of(vocabulary.train(texts, 1200)))


@pytest.fixture(scope="module")
def tokenizer():
    return encoder()._tokenizer


def test_a_number_stands_for_one_dialogue_and_other_numbers_for_others() -> None:
    assert [dialogues.dialogue(number) for number in range(50)] == drawn()[:50]
    assert len({str(made.messages) for made in drawn()}) > 0.98 * len(drawn())


def test_every_kind_and_every_template_occurs() -> None:
    kinds = Counter(made.kind for made in drawn())
    assert set(kinds) == set(dialogues.SHARES)
    assert {made.variant for made in drawn()} == {"instruct", "thinking", "k2.5"}
    calls = Counter(
        len(message["tool_calls"])
        for made in drawn()
        for message in made.messages
        if "tool_calls" in message
    )
    assert calls[1] > calls[2] > 0


def test_two_of_five_dialogues_are_conversations_about_several_things() -> None:
    several = sum(dialogues.SHARES[kind] for kind in ("conversation", "mixed", "recollection"))
    assert sum(dialogues.SHARES.values()) == 100 and 35 <= several <= 40


def test_calls_fit_the_schemas_they_were_declared_with() -> None:
    checked = 0
    for made in drawn() + drawn(held_out=True):
        schemas = {t["function"]["name"]: t["function"]["parameters"] for t in made.tools}
        for message in made.messages:
            for call in message.get("tool_calls", ()):
                schema = schemas[call["function"]["name"]]
                arguments = json.loads(call["function"]["arguments"])
                assert set(schema["required"]) <= set(arguments) <= set(schema["properties"])
                for name, value in arguments.items():
                    declared = schema["properties"][name]
                    assert type(value) is TYPES[declared["type"]]
                    assert value in declared.get("enum", [value])
                    checked += 1
    assert checked > 300


def test_every_argument_can_be_read_off_the_conversation() -> None:
    for made in drawn():
        said = ""
        for message in made.messages:
            for call in message.get("tool_calls", ()):
                for value in json.loads(call["function"]["arguments"]).values():
                    assert str(value).lower() in said.lower(), (value, said)
            said += message["content"]


def test_rendered_calls_are_read_back_by_the_servers_own_parser(tokenizer) -> None:
    checked = 0
    for made in drawn():
        ids, weights = encoder().sample(made)
        last = last_question(made.messages)
        calls = [c for m in made.messages[last:] for c in m.get("tool_calls", ())]
        if made.kind != "tools" or not calls or made.variant == "instruct":
            continue
        answer = [i for i, weight in zip(ids, weights, strict=True) if weight == FULL_WEIGHT]
        expected = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
        assert evaluate.parsed_calls(tokenizer, made.tools, answer) == expected
        checked += 1
    assert checked > 7


def test_only_what_the_assistant_says_has_full_weight(tokenizer) -> None:
    for made in drawn()[:100]:
        ids, weights = encoder().sample(made)
        learnt = tokenizer.decode(
            [i for i, weight in zip(ids, weights, strict=True) if weight == FULL_WEIGHT]
        )
        answers = [m for m in made.messages if m["role"] == "assistant"]
        if made.variant != "instruct":
            answers = [m for m in made.messages[last_question(made.messages) :] if m in answers]
        assert learnt.count(IM_END) == len(answers)
        for message in made.messages:
            if message["role"] == "assistant" and message in answers:
                assert message["content"] in learnt
        assert made.messages[0]["role"] != "system" or made.messages[0]["content"] not in learnt


def test_thinking_samples_begin_where_the_prompt_of_that_template_ends(tokenizer) -> None:
    thinking = [made for made in drawn() if made.variant == "thinking"]
    for made in thinking[:30]:
        ids, _ = encoder().sample(made)
        split = last_question(made.messages) + 1
        prompt = encoder().template("thinking").render(made.messages[:split], made.tools or None)
        assert ids[: len(prompt)] == prompt
        assert tokenizer.decode(ids[len(prompt) :]).startswith("<think>")


def test_names_and_wordings_that_are_held_out_are_never_trained_on() -> None:
    held_out = {word for word in CITIES + NAMES if is_held_out(word)}
    assert 30 < len(held_out) < 0.25 * len(CITIES + NAMES)
    for made in drawn():
        said = re.split(r"[^\w]+", str(made.messages))
        # "Nice" the city and "Nice" the word.
        assert not held_out.intersection(said) - {"Nice", "Jack", "Mark"}
    evaluated = re.split(r"[^\w]+", str([made.messages for made in drawn(held_out=True)]))
    assert len(held_out.intersection(evaluated)) > 20


@pytest.mark.parametrize("topics", [dialogues.about, dialogues.smalltalk])
def test_every_topic_has_wordings_on_both_sides(topics) -> None:
    for topic in topics().values():
        assert topic.answers, topic.name
        for held_out in (False, True):
            assert topic.question(Draw(1, held_out))


def test_every_answer_about_itself_says_what_is_looked_for() -> None:
    for topic in dialogues.about().values():
        assert topic.keys, topic.name
        for seed in range(8):
            _, answer = topic.exchange(Draw(seed))
            for keys in topic.keys:
                assert any(key in answer for key in keys.split("|")), (topic.name, answer)


def test_every_tool_of_the_catalogue_can_be_asked_for() -> None:
    draw = Draw(3)
    for entry in tools.catalogue():
        tool = entry.tool(draw)
        made = tools.use(tool, draw)
        assert len(made.arguments) == len(made.results) == len(made.answers) == 1
        assert "<" not in made.request + made.answers[0]
        if tool.joint_requests:
            assert len(tools.use(tool, draw, joint=True).arguments) >= 2


def test_a_word_is_cut_alike_wherever_it_stands(tokenizer) -> None:
    for name in ("Paris", "Zidorfield", "umbrella"):
        alone, spaced, quoted = (
            [tokenizer.decode([i]) for i in tokenizer.encode(text)]
            for text in (name, f" {name}", f' "{name}"')
        )
        assert [piece.strip() for piece in spaced if piece.strip()] == alone
        assert quoted[-len(alone) - 1 : -1] == alone or quoted[-len(alone) :] == [
            *alone[:-1], alone[-1] + '"'
        ]  # fmt: skip
    assert len(tokenizer.encode("2026")) == 4


PIECES = ["Gre", "ta", "Kim", "pai", "bour", "zo", "umbrella", "Tai", "ck", "Hel", "ste"]


def test_with_a_vocabularys_pieces_every_one_of_them_is_something_to_copy() -> None:
    copied = ""
    for number in NUMBERS:
        for message in dialogues.dialogue(number, pieces=PIECES).messages:
            for call in message.get("tool_calls", ()):
                copied += call["function"]["arguments"].lower()
    assert all(piece.lower() in copied for piece in PIECES)


def test_names_put_together_from_pieces_are_none_that_is_held_out() -> None:
    assert is_held_out("Greta") and is_held_out("Kim") and is_held_out("Taipei")
    draw = Draw(1, pieces=PIECES)
    made = {draw.pieced() for _ in range(3000)}
    assert len(made) > 400 and "Zota" in made
    assert not any(is_held_out(name) for name in made)


def test_pieces_do_not_change_what_is_held_out() -> None:
    assert dialogues.dialogue(5, held_out=True) == drawn(held_out=True)[5]
    assert dialogues.dialogue(5, pieces=PIECES) == dialogues.dialogue(5, pieces=PIECES)


def test_a_follow_up_comes_right_after_a_question_of_its_topic() -> None:
    answers = {
        answer
        for topics in (dialogues.about(), dialogues.smalltalk())
        for topic in topics.values()
        for answer in (line.split(" => ")[1] for line in topic.follow_ups)
    }
    seen = 0
    for made in drawn():
        for before, message in zip(made.messages, made.messages[2:], strict=False):
            if message.get("reasoning_content") == "This goes on from what was said.":
                seen += 1
                assert before["role"] == "assistant" or before["content"]
    assert len(answers) > 40 and seen > 15


def test_no_reasoning_is_learnt_to_be_left_out(tokenizer) -> None:
    """Earlier answers stand in a thinking prompt without their reasoning."""
    empty = tokenizer.special_id("<think>"), tokenizer.special_id("</think>")
    checked = 0
    for made in drawn():
        if made.variant != "thinking":
            continue
        ids, weights = encoder().sample(made)
        for place in range(1, len(ids)):
            if (ids[place - 1], ids[place]) == empty:
                assert weights[place - 1] == weights[place] == 0
                checked += 1
    assert checked > 7


@pytest.mark.parametrize("name", patterns.JUDGING)
def test_questions_written_for_judging_are_about_topics_that_exist(name: str) -> None:
    written = patterns.written(name)
    assert len(written) >= 2 * len(dialogues.about())
    assert {topic for topic, *_ in written} == set(dialogues.about())


def test_a_question_that_judges_is_never_drawn(monkeypatch) -> None:
    topic = patterns.Topic("who", questions=["who are {you|they}?"])
    monkeypatch.setattr(patterns, "judged", lambda: frozenset({patterns.bare("Who are you?")}))
    # The checksum holds some of the ways to type it out, so both sides are asked.
    drawn = [topic.question(Draw(seed, held_out=seed % 2 == 0)) for seed in range(3)]
    drawn += [topic.question(Draw(seed)) for seed in range(60)]
    assert not any(patterns.bare(question) == "whoareyou" for question in drawn)


def test_no_training_text_asks_a_question_that_judges() -> None:
    asked = {
        patterns.bare(message["content"])
        for made in drawn()
        for message in made.messages
        if message["role"] == "user"
    }
    assert len(patterns.judged()) > 200 and not asked & patterns.judged()


@pytest.mark.parametrize("mark", patterns.FRAMED)
def test_phrases_of_every_mark_become_questions(mark: str) -> None:
    draw = Draw(4)
    made = {patterns.chosen(patterns.framed(mark, "the thing", draw), draw) for _ in range(300)}
    assert len(made) > 60 and all("the thing" in question for question in made)


def test_topics_have_many_ways_to_be_asked() -> None:
    for topic in dialogues.about().values():
        assert len(topic.questions) + len(topic.phrases) >= 15, topic.name
        drawn = {topic.question(Draw(seed)) for seed in range(200)}
        assert len(drawn) > 170, topic.name


def test_slips_leave_a_question_and_no_two_are_alike() -> None:
    question = "How do I start the server on my machine?"
    made = [as_people_type(question, Draw(seed)) for seed in range(400)]
    assert 100 < made.count(question) < 220
    assert len(set(made)) > 120
    assert as_people_type(question, Draw(7)) == made[7]
    for text in made:
        assert difflib.SequenceMatcher(None, text.lower(), question.lower()).ratio() > 0.5, text


def test_what_a_slot_holds_is_typed_without_slips() -> None:
    topic = patterns.Topic("name", questions=["my name is <name>"], answers=["Hello, <name>!"])
    for seed in range(200):
        question, answer = topic.exchange(Draw(seed))
        assert answer[7:-1] in question


@pytest.mark.parametrize(
    "clause, question",
    [
        ("why the sky is blue", "why is the sky blue?"),
        ("how to make tea", "how do I make tea?"),
        ("how planes fly", "how do planes fly?"),
        ("how a car works", "how does a car work?"),
        ("how many legs an insect has", "how many legs does an insect have?"),
        ("how many planets there are", "how many planets are there?"),
        ("which planet is the largest", "which planet is the largest?"),
        ("who Mozart was", "who was Mozart?"),
    ],
)
def test_indirect_questions_are_put_directly(clause: str, question: str) -> None:
    assert world.direct(clause) == question


def test_what_is_known_of_the_world_is_said_whole() -> None:
    for seed in range(300):
        for made in world.exchanges(Draw(seed)):
            assert made.answer[-1] == "." and made.answer[-2] != "." and made.answer[0].isupper()
            assert "<" not in made.question and "|" not in made.question + made.answer


def test_short_questions_follow_only_what_makes_them_clear() -> None:
    seen = 0
    for seed in range(400):
        first, *others = knowledge.exchanges(Draw(seed))
        for made in others:
            seen += 1
            kind = "opposite" if "opposite" in first.answer else "capital"
            kind = "comes" if "comes" in first.answer else kind
            assert kind in made.answer and len(made.question) < 40
    assert seen > 40


def test_what_is_answered_by_hand_is_known_whatever_its_form() -> None:
    for asked in ("What is a volcano?", "Tell me a fact about volcanos.", "Why is the sky blue?"):
        assert world.answers(asked)
    for asked in ("What is a scarf?", "Is a volcano dangerous?", "Why is the sky grey?", "Hello"):
        assert not world.answers(asked)
