"""The public Engine on whole files: what it opens, and what it refuses before loading."""

import subprocess
import sys

import numpy as np
import pytest
from gguf_factory import tiny_config, write_tiny_k2
from text_factory import gguf_metadata, small_vocabulary, write_directory

from hybrid_k2 import Engine, SamplingParams
from hybrid_k2.errors import (
    ContextLengthError,
    ModelFileError,
    NonFiniteError,
    PlanError,
    TokenizerError,
)

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture
def tokenizer_keys():
    return gguf_metadata(small_vocabulary())


def test_the_demo_model_opens_without_arguments_and_says_what_it_is():
    with Engine.open(num_threads=1) as engine:
        ids = engine.template.render([{"role": "user", "content": "hi"}])
        answer = list(engine.generate(ids, GREEDY))
        assert engine.is_demo and "demo model" in engine.notice
    assert len(answer) == 8


def test_generate_takes_the_likeliest_tokens_that_logits_show(tmp_path, tokenizer_keys):
    tiny = write_tiny_k2(tmp_path / "k2.gguf", tokenizer=tokenizer_keys)
    with Engine.open(tiny.path, rules="cpu", num_threads=2) as engine:
        prompt = engine.tokenizer.encode("hello world")
        answer = list(engine.generate(prompt, GREEDY))
        logits = engine.logits(prompt + answer)
    assert logits.dtype == np.float32 and logits.shape == (len(prompt) + 8, tiny.config.vocab_size)
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer


def test_a_file_without_tokenizer_is_refused_before_loading(tmp_path):
    path = write_tiny_k2(tmp_path / "k2.gguf").path

    def fail(*progress):
        raise AssertionError("loading began")

    with pytest.raises(TokenizerError, match=r"k2\.gguf: carries no tokenizer.*--model-path"):
        Engine.open(path, progress=fail)
    with Engine.open(path, ids_only=True, num_threads=1) as engine:
        assert len(list(engine.generate([1, 2, 3], GREEDY))) == 8
        with pytest.raises(TokenizerError, match="ids_only"):
            _ = engine.tokenizer


def test_what_is_asked_before_loading_can_end_it(tmp_path, tokenizer_keys):
    path = write_tiny_k2(tmp_path / "k2.gguf", tokenizer=tokenizer_keys).path

    def refuse(template, context):
        template.render([{"role": "user", "content": "hello " * 100}], max_tokens=context)

    def fail(*progress):
        raise AssertionError("loading began")

    with pytest.raises(ContextLengthError, match="64"):
        Engine.open(path, progress=fail, before_loading=refuse, context=64)


def test_a_tokenizer_directory_serves_a_file_without_one(tmp_path):
    vocabulary = small_vocabulary()
    folder = write_directory(vocabulary, tmp_path / "hf")
    config = tiny_config(vocab_size=gguf_size(vocabulary))
    path = write_tiny_k2(tmp_path / "k2.gguf", config).path
    write_config(folder, config)
    with Engine.open(path, model_path=folder, num_threads=1) as engine:
        assert engine.tokenizer.decode(engine.tokenizer.encode("hello")) == "hello"


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    config = tiny_config(vocab_size=5000)
    path = write_tiny_k2(tmp_path / "k2.gguf", config).path
    folder = write_directory(small_vocabulary(), tmp_path / "hf")
    write_config(folder, config)
    with pytest.raises(TokenizerError, match=r"712 tokens and the model 5000"):
        Engine.open(path, model_path=folder)


def test_what_does_not_fit_is_refused_before_loading(tmp_path, tokenizer_keys):
    path = write_tiny_k2(tmp_path / "k2.gguf", tokenizer=tokenizer_keys).path
    with pytest.raises(PlanError, match="RAM"):
        Engine.open(path, ram_bytes=1 << 20)


def test_every_end_token_of_the_tokenizer_ends_an_answer(tmp_path, tokenizer_keys):
    tiny = write_tiny_k2(tmp_path / "k2.gguf", tokenizer=tokenizer_keys)
    with Engine.open(tiny.path, num_threads=1) as engine:
        prompt = engine.tokenizer.encode("hello")
        for token_id in engine.tokenizer.eos_ids:
            params = SamplingParams(temperature=0, max_tokens=4, logit_bias={token_id: 100.0})
            assert list(engine.generate(prompt, params)) == []


def test_nan_scales_are_named_by_their_tensor(tmp_path, tokenizer_keys):
    quants = {"default": "Q8_0"}
    path = write_tiny_k2(tmp_path / "k2.gguf", quants=quants, tokenizer=tokenizer_keys).path
    poison(path, "model.layers.1.self_attn.o_proj.weight")
    with Engine.open(path, num_threads=1) as engine:
        with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.self_attn\.o_proj\.weight"):
            list(engine.generate(engine.tokenizer.encode("hello"), GREEDY))


def test_a_missing_file_is_the_users_mistake(tmp_path):
    with pytest.raises(ModelFileError, match=r"nowhere\.gguf"):
        Engine.open(tmp_path / "nowhere.gguf")


def gguf_size(vocabulary) -> int:
    return len(gguf_metadata(vocabulary)["tokenizer.ggml.tokens"])


def write_config(folder, config) -> None:
    import json

    from gguf_factory import hf_config

    (folder / "config.json").write_text(json.dumps(hf_config(config)))


def poison(path, name: str) -> None:
    """Makes the first scale of a Q8_0 tensor a NaN, in the file."""
    from hybrid_k2.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    stored = bytes(checkpoint.tensors[name].data)
    checkpoint.close()
    data = path.read_bytes()
    at = data.index(stored)
    path.write_bytes(data[:at] + b"\xff\x7f" + data[at + 2 :])


def test_a_wrong_file_is_refused_without_importing_torch(tmp_path):
    (tmp_path / "empty.gguf").touch()
    code = (
        "import sys; from hybrid_k2 import Engine\n"
        "try: Engine.open(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "empty.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ModelFileError", "False"]
