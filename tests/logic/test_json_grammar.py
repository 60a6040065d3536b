"""JSON that fits a schema, token by token: any token it allows ends in a value jsonschema accepts,
and no value that jsonschema accepts is beyond reach.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_schemas import INTEGER, SCHEMAS, STRING, closed, is_valid, random_answer
from text_factory import small_vocabulary

from hybrid_k2.errors import RequestError
from hybrid_k2.text import Tokenizer
from hybrid_k2.text.json_grammar import JsonGrammars

pytest.importorskip("llguidance")

SMALL = JsonGrammars(Tokenizer(small_vocabulary(thinking=True)))
TOKENIZER = SMALL._tokenizer
SPELLINGS = [{}, {"separators": (",", ":")}, {"indent": 4}, {"indent": "\t"}]


@pytest.fixture(scope="module")
def k2_grammars(k2_data: Path) -> JsonGrammars:
    return JsonGrammars(Tokenizer.from_directory(k2_data))


def accepts(value: Any, token_ids: list[int]) -> bool:
    """Whether a value that is being written takes these tokens and may end with them."""
    for token_id in token_ids:
        if value.is_done or not value.mask()[token_id]:
            return False
        value.accept(token_id)
    return value.may_end


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_tokens_it_allows_end_in_a_value_that_fits(name: str) -> None:
    grammar = SMALL.compile(SCHEMAS[name], name)
    for seed in range(10):
        text = TOKENIZER.decode(random_answer(grammar.start(), seed))
        assert is_valid(text, SCHEMAS[name]), text


@pytest.mark.parametrize("name", SCHEMAS)
def test_k2s_own_tokens_end_in_a_value_that_fits(name: str, k2_grammars: JsonGrammars) -> None:
    grammar = k2_grammars.compile(SCHEMAS[name], name)
    for seed in range(2):
        text = k2_grammars._tokenizer.decode(random_answer(grammar.start(), seed))
        assert is_valid(text, SCHEMAS[name]), text


def test_numbers_need_something_behind_them_to_be_over() -> None:
    value = SMALL.compile({"type": "integer", "minimum": 0, "maximum": 50}, "n").start()
    assert not value.may_end
    for digit in "12":
        value.accept(ord(digit))
        assert value.may_end
    assert value.is_done, "120 would be too large"


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
@pytest.mark.parametrize("name", SCHEMAS)
def test_values_that_fit_can_be_written_in_every_common_spelling(
    name: str, spelling: dict[str, Any]
) -> None:
    grammar = SMALL.compile(SCHEMAS[name], name)
    for seed in range(5):
        given = json.loads(TOKENIZER.decode(random_answer(grammar.start(), seed)))
        text = json.dumps(given, ensure_ascii=False, **spelling)
        assert accepts(grammar.start(), TOKENIZER.encode(text)), text


REFUSED = [
    (closed(a=STRING), '{"a": "x", "b": 1}'),
    (closed(a=STRING), "{}"),
    (closed(a=STRING), '{"a": 1}'),
    (closed(a=STRING), '{"a": "more than twelve"}'),
    (closed(a=STRING), '{"a": "\n"}'),
    (closed(a=STRING), '{"a": "x"}}'),
    (closed(a=STRING), '{"a": "x"} '),
    (closed(a=STRING), ' {"a": "x"}'),
    (closed(a=STRING), '{"a":   "x"}'),
    (closed(a=STRING), "{'a': 'x'}"),
    (closed(n=INTEGER), '{"n": 1000}'),
    (closed(n=INTEGER), '{"n": 01}'),
    (closed(n=INTEGER), '{"n": 1.5}'),
    (SCHEMAS["enum"], '{"unit": "Kelvin"}'),
    (SCHEMAS["pattern"], '{"id": "AB-12"}'),
    (SCHEMAS["tuple"], '{"pair": ["a", 1, 2]}'),
]


@pytest.mark.parametrize(("schema", "text"), REFUSED, ids=lambda value: str(value)[-40:])
def test_what_does_not_fit_is_refused_in_every_split(schema: Any, text: str) -> None:
    grammar = SMALL.compile(schema, "s")
    assert not accepts(grammar.start(), TOKENIZER.encode(text))
    assert not accepts(grammar.start(), list(text.encode()))


def test_masks_have_the_tokens_that_begin_what_may_follow_and_no_others() -> None:
    """Against the definition, for a schema whose values can be listed.

    Where only one text can follow it may insist on the tokens that the tokenizer makes of it.
    """
    texts = [b'"hello"', b'"hello world"', b'"he"', '"é你"'.encode()]
    grammar = SMALL.compile({"enum": [json.loads(text) for text in texts]}, "s")
    for text in texts:
        for end in range(len(text)):
            value = grammar.start()
            for byte in text[:end]:
                value.accept(byte)
            rests = [other[end:] for other in texts if other.startswith(text[:end])]
            expected = {
                i
                for i in range(TOKENIZER.vocab_size)
                if TOKENIZER.control_text(i) is None
                and any(rest.startswith(TOKENIZER.token_bytes(i)) for rest in rests)
            }
            allowed = set(np.flatnonzero(value.mask()).tolist())
            assert allowed and allowed <= expected, text[:end]
            assert allowed == expected or len({rest[0] for rest in rests}) == 1, text[:end]


def test_no_control_token_is_ever_allowed() -> None:
    control = np.array(sorted(TOKENIZER.control_ids))
    for name, schema in SCHEMAS.items():
        value = SMALL.compile(schema, name).start()
        for token_id in random_answer(SMALL.compile(schema, name).start(), 3):
            assert not value.mask()[control].any()
            value.accept(token_id)
        assert value.is_done or not value.mask()[control].any()


def test_a_control_token_spelt_in_a_string_is_text() -> None:
    text = '{"a": "<|im_end|>"}'
    assert accepts(SMALL.compile(closed(a={"type": "string"}), "s").start(), TOKENIZER.encode(text))


def test_answers_of_one_grammar_do_not_share_their_progress() -> None:
    grammar = SMALL.compile(closed(a=INTEGER), "s")
    first, second = grammar.start(), grammar.start()
    first.accept(ord("{"))
    assert not first.mask()[ord("{")] and second.mask()[ord("{")]


def test_what_a_lax_schema_says_and_nobody_can_enforce_is_left_out() -> None:
    schema = {"type": "array", "items": INTEGER, "uniqueItems": True}
    with pytest.raises(RequestError, match=r"^the schema: .*uniqueItems"):
        SMALL.compile(schema, "the schema")
    grammar = SMALL.compile(schema, "the schema", is_strict=False)
    assert accepts(grammar.start(), TOKENIZER.encode("[1, 1]"))
    assert not accepts(grammar.start(), TOKENIZER.encode('["a"]'))


@pytest.mark.parametrize(
    "options", [{"lenient": True}, {"whitespace_pattern": "[ ]*"}, {"item_separator": ";"}, 3]
)
def test_a_schema_cannot_bring_options_of_its_own(options: Any) -> None:
    schema = {**closed(a=INTEGER, b=INTEGER), "x-guidance": options}
    with pytest.raises(RequestError, match="uniqueItems"):
        SMALL.compile({**schema, "uniqueItems": True}, "s")
    grammar = SMALL.compile(schema, "s")
    assert accepts(grammar.start(), TOKENIZER.encode('{"a": 1, "b": 2}'))
    assert not accepts(grammar.start(), TOKENIZER.encode('{"a": 1; "b": 2}'))
    assert not accepts(grammar.start(), TOKENIZER.encode('{"a":     1, "b": 2}'))


def test_a_long_text_can_be_written_where_its_length_is_bounded(k2_grammars: JsonGrammars) -> None:
    schema = closed(text={"type": "string", "maxLength": 40_000})
    tokenizer = k2_grammars._tokenizer
    prose = Path(__file__).read_text(encoding="utf-8")
    text = json.dumps({"text": prose}, ensure_ascii=False)
    assert accepts(k2_grammars.compile(schema, "s").start(), tokenizer.encode(text))
