"""The benchmark of constrained decoding: it follows every call to its end, and times each token."""

import json

import constrained_decoding
import pytest
from text_factory import small_vocabulary

from hybrid_k2.text import Tokenizer

CASES = constrained_decoding.CASES


def test_every_call_is_followed_to_its_end_and_every_token_timed() -> None:
    pytest.importorskip("llguidance")
    tokenizer = Tokenizer(small_vocabulary())
    library = constrained_decoding.Llguidance(tokenizer)
    compile_s, mask_s = constrained_decoding.measure(library, tokenizer)
    spelt = [json.dumps(value, ensure_ascii=False) for _, value in CASES.values()]
    assert len(compile_s) == len(CASES)
    assert len(mask_s) == sum(len(tokenizer.encode(text)) for text in spelt)
    assert min(compile_s + mask_s) > 0
    assert set(constrained_decoding.sampler_s(tokenizer, library, 2)) == {"free", "in a string"}
