"""One conversation: what is sent, what is kept, what is saved. The engine is a fake."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from chat_factory import FakeEngine

from hybrid_k2.cli.chat_session import ChatSession
from hybrid_k2.engine.sampling_params import SamplingParams
from hybrid_k2.errors import BadInputError, HybridK2Error, RequestError
from hybrid_k2.text.chat_template import DEFAULT_SYSTEM

ASK = "<|im_assistant|>assistant<|im_middle|>"


def chat(engine: FakeEngine, **options: Any) -> ChatSession:
    params = SamplingParams(max_tokens=options.pop("max_tokens", None))
    return ChatSession(engine, engine.template, params, **options)


def ask(session: ChatSession, text: str) -> str:
    return "".join(delta.text for delta in session.ask(text))


def test_every_turn_sends_the_whole_conversation_as_the_template_renders_it() -> None:
    engine = FakeEngine(["hello", "world"])
    session = chat(engine, system="be brief")
    assert [ask(session, "one"), ask(session, "two")] == ["hello", "world"]
    first = (
        "<|im_system|>system<|im_middle|>be brief<|im_end|>"
        f"<|im_user|>user<|im_middle|>one<|im_end|>{ASK}"
    )
    assert engine.prompts == [
        first,
        f"{first}hello<|im_end|><|im_user|>user<|im_middle|>two<|im_end|>{ASK}",
    ]


def test_without_a_system_prompt_the_templates_own_is_sent() -> None:
    engine = FakeEngine(["hello", "hello"])
    ask(chat(engine), "one")
    assert DEFAULT_SYSTEM in engine.prompts[0]
    ask(chat(engine, system=""), "one")
    assert engine.prompts[1].startswith("<|im_system|>system<|im_middle|><|im_end|>")


def test_the_tokenizers_end_tokens_end_an_answer_whatever_the_models_file_says() -> None:
    engine = FakeEngine(["hello"])
    ask(chat(engine), "one")
    assert engine.params[0].stop_token_ids == engine.tokenizer.eos_ids
    assert engine.tokenizer.special_id("<|im_end|>") in engine.tokenizer.eos_ids


def test_reasoning_is_shown_and_saved_but_not_sent_again() -> None:
    engine = FakeEngine([["<think>", "why", "</think>", "hello"], "world"], variant="thinking")
    session = chat(engine)
    assert [(d.channel, d.text) for d in session.ask("one") if d.channel == "content"]
    assert session.messages[1] == {
        "role": "assistant",
        "content": "hello",
        "reasoning_content": "why",
    }
    ask(session, "two")
    assert f"{ASK}<think></think>hello<|im_end|>" in engine.prompts[1]


def test_a_stop_string_ends_generation() -> None:
    engine = FakeEngine(["one two three four five six seven"])
    session = chat(engine, stop=("three",))
    assert ask(session, "count") == "one two "
    assert engine.num_yielded < len(engine.tokenizer.encode("one two three four"))
    assert session.answer.finish_reason == "stop"
    assert session.messages[-1]["content"] == "one two "


@pytest.mark.parametrize("limit", ["max_tokens", "context"])
def test_an_answer_cut_at_a_limit_says_so(limit: str) -> None:
    engine = FakeEngine(["x" * 100])
    num_prompt_tokens = len(engine.template.render([{"role": "user", "content": "one"}]))
    if limit == "context":
        engine.core.context = num_prompt_tokens + 5
    session = chat(engine, max_tokens=5 if limit == "max_tokens" else None)
    assert ask(session, "one") == "xxxxx"
    assert session.answer.finish_reason == "length"
    assert (session.answer.prompt_tokens, session.answer.num_tokens) == (num_prompt_tokens, 5)


def test_an_answers_figures_are_the_engines_for_it_alone() -> None:
    engine = FakeEngine(["x", "xyz"])
    session = chat(engine)
    ask(session, "one")
    ask(session, "two")
    assert session.answer.stats.decode_tokens == 3
    assert session.answer.stats.prefill_tokens == session.answer.prompt_tokens
    assert session.answer.finish_reason == "stop"


@pytest.mark.parametrize("how", ["closed", "interrupted"])
def test_an_interrupted_answer_stays_as_far_as_it_came(how: str) -> None:
    engine = FakeEngine([["x", "y", KeyboardInterrupt()], "next"])
    session = chat(engine)
    deltas = session.ask("one")
    assert [next(deltas).text, next(deltas).text] == ["x", "y"]
    if how == "closed":
        deltas.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            next(deltas)
    assert session.answer.finish_reason == "interrupted"
    assert [message["content"] for message in session.messages] == ["one", "xy"]
    ask(session, "two")
    assert f"{ASK}xy<|im_end|>" in engine.prompts[1]


def test_a_question_interrupted_before_any_answer_is_forgotten() -> None:
    session = chat(FakeEngine([[KeyboardInterrupt()]]))
    with pytest.raises(KeyboardInterrupt):
        ask(session, "one")
    assert session.messages == []


def test_a_failing_engine_leaves_the_conversation_as_it_was() -> None:
    session = chat(FakeEngine(["fine", [HybridK2Error("NaN")], "fine"]))
    ask(session, "one")
    with pytest.raises(HybridK2Error, match="NaN"):
        ask(session, "two")
    assert [message["content"] for message in session.messages] == ["one", "fine"]


def test_a_conversation_longer_than_the_context_is_refused_before_anything_is_computed() -> None:
    engine = FakeEngine(["x"], context=64)
    session = chat(engine)
    with pytest.raises(RequestError, match="64"):
        ask(session, "word " * 100)
    assert engine.prompts == []
    assert session.messages == []


def test_an_empty_stop_string_is_an_error_at_once() -> None:
    with pytest.raises(RequestError, match="stop string is empty"):
        chat(FakeEngine(), stop=("",))


def test_reset_forgets_the_messages_and_keeps_the_system_prompt() -> None:
    engine = FakeEngine(["hello", "hello"])
    session = chat(engine, system="be brief")
    ask(session, "one")
    session.reset()
    ask(session, "two")
    assert "one" not in engine.prompts[1]
    assert "be brief" in engine.prompts[1]


# Files -----------------------------------------------------------------------------------------


def test_a_saved_conversation_goes_on_where_it_was(tmp_path: Path) -> None:
    engine = FakeEngine(["你好 \ud83d", "again"])
    session = chat(engine, system="be brief")
    ask(session, "hi\n\tthere")
    session.save(tmp_path / "chat.json")
    other = FakeEngine(["again"])
    loaded = chat(other)
    loaded.load(tmp_path / "chat.json")
    assert (loaded.system, loaded.messages) == (session.system, session.messages)
    assert ask(loaded, "two") == ask(session, "two")
    assert other.prompts[0] == engine.prompts[1]


def test_only_its_owner_may_read_a_saved_conversation(tmp_path: Path) -> None:
    chat(FakeEngine()).save(tmp_path / "chat.json")
    assert (tmp_path / "chat.json").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "chat.json"
    file.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(HybridK2Error, match=r"chat\.json: not saved: No space") as caught:
        chat(FakeEngine()).save(file)
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]
    assert file.read_text() == "old"


@pytest.mark.parametrize("name", ["missing/chat.json", "."])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(HybridK2Error, match="not saved"):
        chat(FakeEngine()).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a chat saved by /save"),
        ({"version": 2}, "version is 2, this program reads 1"),
        ({"system": 7}, "system must be a string or null"),
        ({"messages": {}}, "messages must be a list"),
        ({"messages": GOOD[:1]}, "the last message is a question"),
        ({"messages": GOOD[1:]}, r"messages\[0\] must be an object whose role is 'user'"),
        ({"messages": [*GOOD, "x", "y"]}, r"messages\[2\] must be an object"),
        ({"messages": [GOOD[0], {"role": "assistant"}]}, r"messages\[1\].content must be a string"),
        (
            {"messages": [GOOD[0], {**GOOD[1], "reasoning_content": None}]},
            r"messages\[1\].reasoning_content must be a string",
        ),
    ],
)
def test_a_file_that_is_no_saved_chat_changes_nothing(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "chat.json"
    good = {"format": "hybrid-k2 chat", "version": 1, "system": None, "messages": GOOD}
    file.write_text(json.dumps(good | change))
    session = chat(FakeEngine(["hello"]))
    ask(session, "one")
    before = list(session.messages)
    with pytest.raises(BadInputError, match=message):
        session.load(file)
    assert session.messages == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a chat"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "chat.json").write_bytes(content)
    with pytest.raises(BadInputError, match=f"chat.json: {message}"):
        chat(FakeEngine()).load(tmp_path / "chat.json")


def test_a_missing_or_giant_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        chat(FakeEngine()).load(tmp_path / "chat.json")
    with (tmp_path / "giant").open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(BadInputError, match="has 200,000,000 bytes, a saved chat at most"):
        chat(FakeEngine()).load(tmp_path / "giant")
