"""The demo model, held to schemas and tools that it was not trained on: all of its answers fit.

At temperature 1.0, in one batch. jsonschema judges, and the stream's parser reads what it wrote.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from json_schemas import SCHEMAS, is_valid

from hybrid_k2 import Engine, SamplingParams
from hybrid_k2.text import Delta, TextStream
from hybrid_k2.text.answer_grammar import AnswerGrammar
from hybrid_k2.text.json_grammar import JsonGrammars
from hybrid_k2.text.tool_calls import CallDropped, collect_calls

pytest.importorskip("llguidance")

NAMES = {name: f"tool_{index}" for index, name in enumerate(SCHEMAS)}
TOOLS = [
    {"type": "function", "function": {"name": NAMES[name], "parameters": schema}}
    for name, schema in SCHEMAS.items()
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.open(max_sequences=8) as engine:
        yield engine


def answers(engine: Engine, grammars: dict[str, AnswerGrammar], each: int) -> Iterator[Any]:
    """(name, token ids, why it ended) of `each` answers to every grammar, made together."""
    prompt = engine.template.render([{"role": "user", "content": "hello"}])
    names, ids, ended = {}, {}, {}
    for name, grammar in grammars.items():
        for seed in range(each):
            params = SamplingParams(temperature=1.0, seed=seed, grammar=grammar)
            request_id = engine.core.submit(prompt, params)
            names[request_id], ids[request_id] = name, []
    while len(ended) < len(names):
        for output in engine.core.step():
            if output.token_id is not None:
                ids[output.request_id].append(output.token_id)
            if output.finish_reason is not None:
                ended[output.request_id] = output.finish_reason
    for request_id, name in names.items():
        yield name, ids[request_id], ended[request_id]


@pytest.mark.parametrize("each", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_every_sampled_json_answer_fits_its_schema(engine: Engine, each: int) -> None:
    compiled = JsonGrammars(engine.tokenizer)
    grammars = {
        name: AnswerGrammar(engine.tokenizer, content=compiled.compile(schema, name))
        for name, schema in SCHEMAS.items()
    }
    for name, token_ids, reason in answers(engine, grammars, each):
        assert reason == "stop"
        assert is_valid(engine.tokenizer.decode(token_ids), SCHEMAS[name])


@pytest.mark.parametrize("each", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_every_sampled_tool_call_is_valid_and_read_as_such(engine: Engine, each: int) -> None:
    """Each schema as the tool that must be called, all others being declared, too."""
    compiled = JsonGrammars(engine.tokenizer)
    grammars = {
        name: AnswerGrammar(
            engine.tokenizer,
            arguments={NAMES[name]: compiled.compile(schema, name)},
            must_call=True,
            parallel=False,
        )
        for name, schema in SCHEMAS.items()
    }
    for name, token_ids, reason in answers(engine, grammars, each):
        stream = TextStream(engine.tokenizer, tools=TOOLS)
        deltas = [d for token_id in token_ids for d in stream.push(token_id)] + stream.finish()
        assert not any(isinstance(delta, Delta | CallDropped) for delta in deltas)
        [call] = collect_calls(deltas)
        assert (call.name, call.id) == (NAMES[name], f"functions.{NAMES[name]}:0")
        assert is_valid(call.arguments, SCHEMAS[name])
        assert (reason, stream.finish_reason(reason)) == ("stop", "tool_calls")
