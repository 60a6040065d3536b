"""Prompts of any size and kind handed to the engine are refused at once, or answered."""

import time

import pytest
from engine.fake_model import VOCAB_SIZE
from engine.test_engine import open_engine
from hypothesis import given
from hypothesis import strategies as st

from hybrid_k2.engine import SamplingParams
from hybrid_k2.errors import ContextLengthError, RequestError


def test_a_prompt_of_a_billion_tokens_is_refused_by_its_length_alone():
    started = time.monotonic()
    for call in (open_engine().submit, open_engine().logits, open_engine().generate):
        with pytest.raises(ContextLengthError, match="1000000000"):
            call(range(10**9))
    assert time.monotonic() - started < 5


@given(st.lists(st.integers() | st.floats() | st.none() | st.text() | st.booleans(), max_size=250))
def test_a_list_of_anything_is_answered_or_refused(token_ids):
    engine = open_engine()
    is_readable = 0 < len(token_ids) < 200 and all(
        type(token_id) is int and 0 <= token_id < VOCAB_SIZE for token_id in token_ids
    )
    try:
        answer = list(engine.generate(token_ids, SamplingParams(max_tokens=1, ignore_eos=True)))
    except RequestError as error:
        assert not is_readable
        assert len(str(error)) < 400
    else:
        assert is_readable and len(answer) == 1
