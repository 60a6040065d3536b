"""Answers held to a form: reasoning, content and calls in their order, and what the stream reads.

The stream's parser and jsonschema judge what random tokens become; ids are those of K2's recorded
answers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_schemas import INTEGER, SCHEMAS, STRING, closed, is_valid, random_answer
from text_factory import small_vocabulary
from tool_call_streams import ALIAS, SHORT, THINK, TOKENIZER, as_tokens, calls, read, spelt, tool

from hybrid_k2.errors import TokenizerError
from hybrid_k2.text import TextStream, Tokenizer
from hybrid_k2.text.answer_grammar import AnswerGrammar
from hybrid_k2.text.json_grammar import JsonGrammars
from hybrid_k2.text.markers import TOOL_MARKERS
from hybrid_k2.text.tool_calls import collect_calls

pytest.importorskip("llguidance")

GRAMMARS = JsonGrammars(TOKENIZER)
ARGUMENTS = {"f": closed(x=STRING, n=INTEGER), "my-tool": closed(), "ns.tool": SCHEMAS["enum"]}
TOOLS = [tool(name) for name in ARGUMENTS]
MARKER_IDS = {name: TOKENIZER.special_id(name) for name in (*TOOL_MARKERS, *THINK)}
END = TOKENIZER.eos_ids[0]


@pytest.fixture(scope="module")
def k2_grammars(k2_data: Path) -> JsonGrammars:
    return JsonGrammars(Tokenizer.from_directory(k2_data))


def arguments(*names: str) -> dict[str, Any]:
    return {name: GRAMMARS.compile(ARGUMENTS[name], name) for name in names or ARGUMENTS}


def grammar(**options: Any) -> AnswerGrammar:
    return AnswerGrammar(TOKENIZER, **options)


def forced(**options: Any) -> AnswerGrammar:
    return grammar(arguments=arguments(), must_call=True, **options)


def follow(constraint: Any, text: str) -> None:
    """Takes the tokens of a text, each of which must be allowed."""
    for token_id in as_tokens(spelt(text)):
        mask = constraint.mask()
        assert mask is None or mask[token_id], TOKENIZER.decode([token_id])
        constraint.accept(token_id)


def allowed_names(constraint: Any) -> set[str]:
    """The control tokens that may come next."""
    mask = constraint.mask()
    control = [i for i in TOKENIZER.control_ids if mask[i]]
    return {TOKENIZER.control_text(i) for i in control}


def allows_text(constraint: Any) -> bool:
    mask = constraint.mask().copy()
    mask[list(TOKENIZER.control_ids)] = False
    return bool(mask.any())


# Calls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_any_tokens_of_a_forced_section_are_calls_of_declared_tools_with_valid_arguments(
    seed: int,
) -> None:
    ids = random_answer(forced(first_number=3).start(), seed, most=10_000)
    reasoning, content, found, reason = read(ids, tools=TOOLS, history=HISTORY)
    assert (reasoning, content, reason) == ("", "", "tool_calls")
    assert [call_id.split(":")[1] for *_, call_id in found] == [
        str(3 + k) for k in range(len(found))
    ]
    for name, text, _ in found:
        assert is_valid(text, ARGUMENTS[name])
    written = TOKENIZER.decode(ids)
    assert all(f"functions.{name}:{3 + k}" in written for k, (name, *_) in enumerate(found))


HISTORY = [
    {"role": "user", "content": "hi"},
    {
        "role": "assistant",
        "tool_calls": [{"id": f"c{k}", "function": {"name": "f"}} for k in range(3)],
    },
]


def test_a_section_has_each_marker_in_its_place_and_nothing_else() -> None:
    constraint = forced().start()
    for before, expected in [
        ("", {"B"}),
        ("⟨B⟩", {"b"}),
        ("⟨b⟩functions.my-tool:0", {"a"}),
        ("⟨a⟩{}", {"e"}),
        ("⟨e⟩", {"b", "E"}),
        ("⟨b⟩functions.my-tool:1⟨a⟩{}⟨e⟩", {"b", "E"}),
    ]:
        follow(constraint, before)
        assert allowed_names(constraint) == {SHORT[name] for name in expected}
        assert not allows_text(constraint) and not constraint.may_end and not constraint.is_done
    follow(constraint, "⟨E⟩")
    assert constraint.is_done and constraint.may_end


@pytest.mark.parametrize(
    "id_text", ["functions.g:0", "functions.f:1", "f:0", "functions.f", " functions.f:0", "0"]
)
def test_an_id_is_a_declared_name_and_the_next_number(id_text: str) -> None:
    constraint = forced().start()
    follow(constraint, "⟨B⟩⟨b⟩")
    with pytest.raises(AssertionError):
        follow(constraint, f"{id_text}⟨a⟩")


def test_a_tool_whose_name_begins_anothers_can_be_called_as_well_as_that() -> None:
    schemas = {"f": closed(), "ff": closed(), "f_f": closed()}
    grammars = {name: GRAMMARS.compile(schema, name) for name, schema in schemas.items()}
    for name in schemas:
        constraint = grammar(arguments=grammars, must_call=True).start()
        follow(constraint, f"⟨B⟩⟨b⟩functions.{name}:0⟨a⟩{{}}⟨e⟩⟨E⟩")
        assert constraint.is_done


def test_where_calls_are_not_parallel_the_section_ends_behind_the_first() -> None:
    constraint = forced(parallel=False).start()
    follow(constraint, "⟨B⟩⟨b⟩functions.f:0⟨a⟩")
    follow(constraint, '{"x": "", "n": 1}⟨e⟩')
    assert allowed_names(constraint) == {SHORT["E"]}


def test_arguments_end_where_they_fit_and_not_before() -> None:
    constraint = grammar(arguments={"f": GRAMMARS.compile({"type": "object"}, "f")}).start()
    follow(constraint, '⟨B⟩⟨b⟩functions.f:0⟨a⟩{"x": [1')
    assert allowed_names(constraint) == set()
    follow(constraint, "]}")
    assert allowed_names(constraint) == {SHORT["e"]} and not allows_text(constraint)


# Where nothing is demanded ---------------------------------------------------------------------


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("opening", ["⟨B⟩⟨b⟩", "⟨b⟩"])
def test_an_answer_is_free_until_it_calls_a_tool(thinking: bool, opening: str) -> None:
    constraint = grammar(arguments=arguments(), thinking=thinking).start()
    for text in ("", "<think>", "a thought", "</think>", 'or "content"', "⟨e⟩⟨E⟩⟨a⟩"):
        follow(constraint, text)
        assert constraint.mask() is None and constraint.may_end and not constraint.is_done
    follow(constraint, opening)
    assert allowed_names(constraint) == set() and allows_text(constraint)
    assert not constraint.may_end
    follow(constraint, "functions.my-tool:0⟨a⟩{}⟨e⟩⟨E⟩")
    assert constraint.is_done


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("opening", [SHORT["B"], SHORT["b"], *ALIAS.values()])
def test_a_marker_that_is_spelt_as_text_opens_calls_as_the_parser_has_it(
    opening: str, thinking: bool
) -> None:
    """Token by token and byte by byte; those that open nothing change nothing."""
    for ids in (TOKENIZER.encode(f"Hi. {opening}"), list(f"Hi. {opening}".encode())):
        for options in ({}, {"must_call": True}) if thinking else ({},):
            constraint = grammar(arguments=arguments(), thinking=thinking, **options).start()
            for token_id in ids:
                constraint.accept(token_id)
            if opening not in OPENERS:
                assert constraint.mask() is None or THINK[1] in allowed_names(constraint)
                continue
            begun = [] if opening == SHORT["b"] else [MARKER_IDS[SHORT["b"]]]
            for token_id in begun:
                assert np.flatnonzero(constraint.mask()).tolist() == [token_id]
                constraint.accept(token_id)
            rest = random_answer(constraint, 1, most=10_000)
            found = read([*ids, *begun, *rest], tools=TOOLS, thinking=thinking)[2]
            assert found and all(is_valid(text, ARGUMENTS[name]) for name, text, _ in found)


OPENERS = (SHORT["B"], SHORT["b"], ALIAS[SHORT["B"]])


def test_line_breaks_in_the_token_that_completes_a_spelt_marker_do_not_hide_it(
    k2_grammars: JsonGrammars,
) -> None:
    tokenizer = k2_grammars._tokenizer
    ids = tokenizer.encode(f"{SHORT['b']}\n\n")
    assert tokenizer.token_bytes(ids[-1]).endswith(b">\n\n")
    grammars = {"f": k2_grammars.compile(closed(), "f")}
    constraint = AnswerGrammar(tokenizer, arguments=grammars).start()
    for token_id in ids:
        assert constraint.mask() is None
        constraint.accept(token_id)
    assert constraint.mask()[tokenizer.encode("functions.f:0")[0]]


def test_where_there_is_no_tool_a_spelt_marker_is_a_word() -> None:
    constraint = grammar(content=GRAMMARS.compile(SCHEMAS["enum"], "s"), thinking=True).start()
    for token_id in TOKENIZER.encode(SHORT["B"]):
        constraint.accept(token_id)
    assert allowed_names(constraint) == set(THINK)


# Reasoning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["</think>", ""])
def test_a_forced_call_comes_behind_free_reasoning(ending: str) -> None:
    constraint = forced(thinking=True).start()
    follow(constraint, "<think>some thoughts")
    assert allows_text(constraint) and not constraint.may_end
    assert allowed_names(constraint) == {*THINK, SHORT["B"]}
    follow(constraint, ending)
    if ending:
        assert not allows_text(constraint) and allowed_names(constraint) == {SHORT["B"]}
    follow(constraint, "⟨B⟩⟨b⟩functions.my-tool:0⟨a⟩{}⟨e⟩⟨E⟩")
    assert constraint.is_done


def test_json_content_comes_behind_free_reasoning() -> None:
    constraint = grammar(content=GRAMMARS.compile(SCHEMAS["enum"], "s"), thinking=True).start()
    follow(constraint, '<think>{"not": "checked"')
    assert not constraint.may_end
    assert allowed_names(constraint) == set(THINK), "no calls, where there is no tool"
    follow(constraint, '</think>{"unit": "celsius"}')
    assert constraint.is_done


# Content ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", SCHEMAS)
def test_any_tokens_of_json_content_are_read_as_content_that_fits(
    name: str, thinking: bool
) -> None:
    content = GRAMMARS.compile(SCHEMAS[name], name)
    for seed in range(3):
        constraint = grammar(content=content, thinking=thinking).start()
        ids = random_answer(constraint, seed, prefer=[MARKER_IDS["</think>"]])
        reasoning, text, found, reason = read(ids, tools=[], thinking=thinking)
        assert is_valid(text, SCHEMAS[name])
        assert (found, reason) == ([], "stop") and (thinking or not reasoning)


def test_where_there_are_tools_a_call_may_come_instead_of_json() -> None:
    content = GRAMMARS.compile(SCHEMAS["enum"], "s")
    for text, done in [('{"unit":', False), ("⟨B⟩⟨b⟩functions.my-tool:0⟨a⟩{}⟨e⟩⟨E⟩", True)]:
        constraint = grammar(content=content, arguments=arguments()).start()
        assert allowed_names(constraint) == {SHORT["B"]}
        follow(constraint, text)
        assert constraint.is_done == done
        assert done or allowed_names(constraint) == set(), "within a value no call begins"


def test_content_that_may_go_on_may_also_end() -> None:
    constraint = grammar(content=GRAMMARS.compile({"type": "integer"}, "s")).start()
    assert not constraint.may_end
    follow(constraint, "12")
    assert constraint.may_end and not constraint.is_done and not constraint.mask()[END]


# Vocabularies ----------------------------------------------------------------------------------


def test_a_vocabulary_without_the_markers_is_an_error() -> None:
    vocabulary = small_vocabulary()
    gaps = {name: i for name, i in vocabulary.control.items() if name in TOOL_MARKERS}
    control = {name: i for name, i in vocabulary.control.items() if name not in gaps}
    unused = {**vocabulary.unused, **{i: f"<|reserved_{i}|>" for i in gaps.values()}}
    tokenizer = Tokenizer(type(vocabulary)(vocabulary.ranks, control, unused))
    with pytest.raises(TokenizerError, match=r"no control token <.tool_calls_section_begin"):
        AnswerGrammar(tokenizer, arguments=arguments(), must_call=True)


WEATHER = {"type": "object", "properties": {"location": {"type": "string"}}}
# The section of the recorded answer in test_tool_calls.py: calls 1 and 2 of its dialogue.
RECORDED = (
    "163595 163597 41937 1150 20254 21055 2800 25 16 163598 8264 5791 1289 414 3372 16934 163599 "
    "163597 41937 1150 20254 21055 2800 25 17 163598 8264 5791 1289 414 10525 16934 163599 163596"
)


def test_the_tokens_of_a_recorded_answer_are_allowed_one_by_one(k2_grammars: JsonGrammars) -> None:
    constraint = AnswerGrammar(
        k2_grammars._tokenizer,
        arguments={"get_current_weather": k2_grammars.compile(WEATHER, "s")},
        must_call=True,
        first_number=1,
    ).start()
    for token_id in map(int, RECORDED.split()):
        assert constraint.mask()[token_id], token_id
        constraint.accept(token_id)
    assert constraint.is_done


def test_any_of_k2s_own_tokens_are_calls_that_fit(k2_grammars: JsonGrammars) -> None:
    tokenizer = k2_grammars._tokenizer
    grammars = {name: k2_grammars.compile(schema, name) for name, schema in ARGUMENTS.items()}
    constrained = AnswerGrammar(tokenizer, arguments=grammars, must_call=True, first_number=0)
    for seed in range(8):
        ids = random_answer(constrained.start(), seed, most=10_000)
        stream = TextStream(tokenizer, tools=TOOLS)
        deltas = [d for token_id in ids for d in stream.push(token_id)] + stream.finish()
        found = collect_calls(deltas)
        assert found and stream.finish_reason("stop") == "tool_calls"
        for call in found:
            assert is_valid(call.arguments, ARGUMENTS[call.name])


def test_masks_of_few_tokens_have_few(k2_grammars: JsonGrammars) -> None:
    """Names in the tokens that the tokenizer makes of them, which are those of K2's training."""
    constraint = AnswerGrammar(
        k2_grammars._tokenizer,
        arguments={name: k2_grammars.compile(closed(), name) for name in ("get_a", "get_b")},
        must_call=True,
    ).start()
    constraint.accept(163595)
    constraint.accept(163597)
    expected = [k2_grammars._tokenizer.encode(f"functions.get_{c}:0") for c in "ab"]
    assert np.flatnonzero(constraint.mask()).tolist() == sorted({ids[0] for ids in expected})


def test_calls_that_a_parser_reads_are_what_the_grammar_wrote() -> None:
    ids = as_tokens(spelt('⟨B⟩⟨b⟩functions.f:0⟨a⟩{"x": "<|im_end|>", "n": 3}⟨e⟩⟨E⟩'))
    constraint = forced().start()
    for token_id in ids:
        assert constraint.mask()[token_id]
        constraint.accept(token_id)
    assert read(ids, tools=TOOLS)[2] == calls(("f", json.dumps({"x": "<|im_end|>", "n": 3})))
