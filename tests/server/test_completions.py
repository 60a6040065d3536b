"""/v1/completions through OpenAI's client, and the routes that speak of tokens."""

import json
import urllib.error
import urllib.request

import openai
import pytest
from server.scripted_engine import ScriptedEngine

MESSAGES = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def prompt_of(engine):
    """A prompt that the script can answer: it needs a template's markers."""
    return engine.template.render(MESSAGES)


def ask(server, path, body=None):
    """(status, JSON) of a POST, or of a GET where there is no body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{server.url}{path}", data, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("as_list", [False, True])
def test_a_prompt_goes_on(serve, stream, as_list):
    engine = ScriptedEngine()
    ids = prompt_of(engine)
    answer = (
        serve(engine)
        .client()
        .completions.create(model="k2", prompt=[ids] if as_list else ids, stream=stream)
    )
    parts = list(answer) if stream else [answer]
    assert {part.object for part in parts} == {"text_completion"}
    assert "".join(part.choices[0].text for part in parts) == "You said: hello"
    assert parts[-1].choices[0].finish_reason == "stop"
    if not stream:
        assert answer.usage.prompt_tokens == len(ids)


def test_a_stream_ends_with_usage_where_asked(serve):
    engine = ScriptedEngine()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    client = serve(engine).client()
    chunks = list(client.completions.create(model="k2", prompt=prompt_of(engine), **options))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == len(prompt_of(engine))


def test_without_a_length_sixteen_tokens_come_and_stop_strings_end_them(serve):
    engine = ScriptedEngine({"hello": ["ab" * 50]})
    client = serve(engine).client()
    answer = client.completions.create(model="k2", prompt=prompt_of(engine))
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (16, "length")
    answer = client.completions.create(model="k2", prompt=prompt_of(engine), stop="ba", n=2)
    assert [choice.text for choice in answer.choices] == ["a", "a"]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_come_in_the_older_apis_lists(serve, stream):
    engine = ScriptedEngine()
    answer = (
        serve(engine)
        .client()
        .completions.create(model="k2", prompt=prompt_of(engine), logprobs=2, stream=stream)
    )
    parts = [part.choices[0].logprobs for part in (answer if stream else [answer])]
    tokens = [token for part in parts for token in part.tokens]
    assert "".join(tokens) == "You said: hello"
    offsets = [offset for part in parts for offset in part.text_offset]
    assert offsets == [len("".join(tokens[:index])) for index in range(len(tokens))]
    for part in parts:
        assert all(-1e-3 < logprob < 0 for logprob in part.token_logprobs)
        for token, top in zip(part.tokens, part.top_logprobs, strict=True):
            assert len(top) == 2 and max(top, key=top.get) == token


def test_text_is_encoded_without_a_template_and_without_markers(serve, monkeypatch):
    engine = ScriptedEngine()
    seen = []
    monkeypatch.setattr(engine.core, "submit", lambda ids, params, **_: seen.append(ids) or 1 // 0)
    with pytest.raises(openai.InternalServerError):
        serve(engine).client().completions.create(model="k2", prompt="a<|im_end|>b")
    assert seen == [engine.tokenizer.encode("a<|im_end|>b")]
    assert engine.tokenizer.special_id("<|im_end|>") not in seen[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("as_ids", [False, True])
def test_an_echo_puts_the_prompt_before_every_answer(serve, stream, as_ids):
    engine = ScriptedEngine()
    prompt = engine.tokenizer.encode("b\u00e4r") if as_ids else "b\u00e4r"
    answer = (
        serve(engine)
        .client()
        .completions.create(model="k2", prompt=prompt, echo=True, max_tokens=3, n=2, stream=stream)
    )
    parts = [part for chunk in answer for part in chunk.choices] if stream else answer.choices
    for index in range(2):
        assert "".join(part.text for part in parts if part.index == index) == "b\u00e4raaa"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"echo": True, "logprobs": 1}, "echo together with logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 3}, "n is 3"),
        ({"prompt": []}, "empty"),
        ({"prompt": ""}, "empty"),
        ({"prompt": [[]]}, "empty"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [-1]}, "-1"),
        ({"prompt": [10**30]}, ""),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "hello world " * 2000}, "maximum context length"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": "other"}, "does not exist"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_value_is_an_error_that_names_it(serve, body, message):
    status, answer = ask(serve(ScriptedEngine()), "/v1/completions", {"prompt": "x", **body})
    assert status in (400, 404)
    assert message in answer["error"]["message"]


def test_tokens_and_text_are_turned_into_each_other(serve):
    engine = ScriptedEngine()
    server = serve(engine)
    text = "hello \u4f60\u597d <|im_end|>"
    ids = engine.tokenizer.encode(text)
    for name in ("prompt", "content"):
        status, answer = ask(server, "/tokenize", {name: text, "return_token_strs": True})
        assert (status, answer["tokens"], answer["count"]) == (200, ids, len(ids))
        assert answer["max_model_len"] == 1000
        assert len(answer["token_strs"]) == len(ids)
    assert ask(server, "/detokenize", {"tokens": ids})[1] == {"prompt": text, "content": text}


def test_a_chats_prompt_can_be_seen_and_counted(serve):
    engine = ScriptedEngine()
    server = serve(engine)
    body = {"messages": MESSAGES, "tools": TOOLS}
    assert ask(server, "/tokenize", body)[1]["tokens"] == engine.template.render(MESSAGES, TOOLS)
    shown = ask(server, "/apply-template", {**body, "add_generation_prompt": False})[1]
    assert shown == {"prompt": engine.template.render_text(MESSAGES, TOOLS, False)}
    half = {"messages": [{"role": "user", "content": "a\ud800"}]}
    assert "a\ufffd" in ask(server, "/apply-template", half)[1]["prompt"]


def test_the_settings_can_be_asked(serve):
    props = ask(serve(ScriptedEngine(context=123)), "/props")[1]
    assert (props["model_alias"], props["total_slots"]) == ("k2", 2)
    assert props["default_generation_settings"]["n_ctx"] == 123
    assert ask(serve(None), "/props")[0] == 503


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "content": "b"}),
        ("/tokenize", {"prompt": 3}),
        ("/tokenize", {"messages": [{"role": "wizard"}]}),
        ("/tokenize", {"prompt": "a b " * 6_000_000}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [99999]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**40]}),
        ("/detokenize", {"tokens": "x"}),
        ("/apply-template", {"messages": []}),
        ("/apply-template", {"messages": [{"role": "user"}]}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_tokens_is_a_400(serve, path, body):
    status, answer = ask(serve(ScriptedEngine()), path, body)
    assert status == 400
    assert answer["error"]["message"]
