"""The pipeline's own: what processes make, what a slow teacher leaves, how a file is cut up."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from demo_k2 import dialogues, pipeline, vocabulary
from demo_k2.encode import Encoder
from demo_k2.samples import MAX_TOKENS


def test_a_teacher_that_takes_too_long_is_stopped() -> None:
    teacher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not pipeline.has_finished(teacher, stop_at=time.monotonic())
    assert teacher.poll() is not None
    assert pipeline.has_finished(
        subprocess.Popen([sys.executable, "-c", ""]), time.monotonic() + 60
    )


def test_a_conversation_that_is_half_written_is_left_out(tmp_path: Path) -> None:
    told = tmp_path / "told.jsonl"
    told.write_text(json.dumps([["Hi?", "Hello."]]) + "\n" + '[["What is a la', encoding="utf-8")
    assert list(pipeline.told_turns(told)) == [[["Hi?", "Hello."]]]
    assert list(pipeline.told_turns(tmp_path / "none")) == []


def test_pieces_put_together_are_the_file(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(bytes(range(250)))
    out = tmp_path / "out"
    out.mkdir()
    pipeline.in_pieces(tmp_path / "model", out, piece_bytes=100)
    assert [f.name for f in sorted(out.iterdir())] == ["model.00", "model.01", "model.02"]
    assert b"".join(f.read_bytes() for f in sorted(out.iterdir())) == bytes(range(250))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> list[str]:
    """A small vocabulary, for which this process is a worker."""
    file = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    made = vocabulary.train(pipeline.template_texts(0), 900)
    vocabulary.save(made, file)
    threads = torch.get_num_threads()
    pipeline.start_encoder(file)
    torch.set_num_threads(threads)
    return made


def test_workers_make_training_text_with_the_vocabularys_pieces(tokens: list[str]) -> None:
    encoder = Encoder(vocabulary.tokenizer_of(tokens))
    pieces = vocabulary.pieces_of(tokens)
    assert len(pieces) > 100 and all(piece.isalpha() for piece in pieces)
    for held_out in (False, True):
        made = pipeline.encode_dialogues((range(40), held_out))[held_out]
        whole = [
            encoder.sample(dialogues.dialogue(i, held_out, () if held_out else pieces))[0]
            for i in range(40)
        ]
        assert made.ids.tolist() == [i for ids in whole if len(ids) <= MAX_TOKENS for i in ids]


def test_some_of_the_teachers_conversations_are_held_out(tokens: list[str]) -> None:
    lines = [json.dumps([[f"What is {i}?", "A number."]]) for i in range(100)]
    sides = pipeline.encode_told((0, lines, 0))
    assert len(sides[True]) == 3 and len(sides[False]) == 97


def test_a_repeated_conversation_is_typed_and_framed_in_another_way(tokens: list[str]) -> None:
    lines = [json.dumps([[f"What is the price of {i}?", "A number."]]) for i in range(100)]
    first, again = (pipeline.encode_told((0, lines, repeat)) for repeat in (0, 1))
    assert True not in again and len(again[False]) == 97
    assert again[False].num_tokens != first[False].num_tokens
