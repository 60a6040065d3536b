"""The model that ships: what it is, that two readings of its vocabulary agree, and how it behaves.

Oracles: the `tokenizers` package and llama.cpp read the vocabulary, jinja the template. Its tokens
are compared with two other programs' in tests/model, its tool calls are read by the official
clients in tests/server. How good it is was measured on a thousand prompts, see training/README.md;
here a few of each kind must hold.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from hybrid_k2 import Engine, SamplingParams, demo_model
from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.demo_model import build_vocabulary
from hybrid_k2.text import ChatTemplate, Tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {
    "prose": (ROOT / "LICENSE").read_text(encoding="utf-8"),
    "python": Path(build_vocabulary.__file__).read_text(encoding="utf-8"),
    "c++ and punctuation": "std::vector<int> a{1, 22, 333, 4444};\r\n\r\n\t\t// -- ==== \\n ----\n",
    "case and contractions": "HelloWorld helloWORLD it's I'LL WE'VE don't ABCdef",
    "other scripts": "naïve café 你好\uff0c世界 中文English混合 ٣٤٥٦ A\u0301 привет 😀👍🏽",
    "control bytes": "\x00\x7f\u0080\u3000 \x1b[0m",
    "white space": "  leading   inner \n \n trailing   ",
}
DIALOGUES: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "hello"}],
    "a system message and two turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ],
    "a tool call and its result": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {
                    "id": "functions.weather:0",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "北京"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "functions.weather:0", "content": "sunny"},
    ],
}
GREEDY = SamplingParams(temperature=0, max_tokens=160)


@pytest.fixture(scope="module")
def checkpoint():
    with_file = open_checkpoint(demo_model.path())
    yield with_file
    with_file.close()


@pytest.fixture(scope="module")
def tokenizer(checkpoint) -> Tokenizer:
    return Tokenizer.from_gguf(checkpoint.metadata)


@pytest.fixture(scope="module")
def text_tokens(checkpoint) -> list[str]:
    tokens = list(checkpoint.metadata["tokenizer.ggml.tokens"])
    return tokens[: -build_vocabulary.NUM_CONTROL_IDS]


@pytest.fixture(scope="module")
def merging(checkpoint, text_tokens):
    """The `tokenizers` package over the file's merges, which hybrid-k2 itself does not read."""
    from tokenizers import models

    merges = [tuple(pair.split(" ")) for pair in checkpoint.metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: token_id for token_id, token in enumerate(text_tokens)}
    return build_vocabulary.pre_tokenized(models.BPE(vocab=vocabulary, merges=merges))


@pytest.fixture(scope="module")
def engine():
    with Engine.open() as opened:
        yield opened


def answer(engine: Engine, messages: list[dict[str, Any]], variant: str = "instruct") -> str:
    template = engine.template.with_variant(variant)
    return engine.tokenizer.decode(list(engine.generate(template.render(messages), GREEDY)))


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_it_is_small_and_says_what_it_is() -> None:
    assert demo_model.path().stat().st_size <= 40_000_000
    assert "demo model" in demo_model.NOTICE and "hybrid-k2 chat MODEL" in demo_model.NOTICE


def test_it_has_every_part_of_k2s_architecture(checkpoint) -> None:
    config = checkpoint.config
    assert (config.n_routed_experts, config.num_experts_per_tok) == (384, 8)
    assert (config.n_shared_experts, config.first_k_dense_replace) == (1, 1)
    assert config.routed_scaling_factor == pytest.approx(2.827) and config.norm_topk_prob
    assert config.q_lora_rank and config.kv_lora_rank and config.rope_scaling
    classes = {module.module_class for module in checkpoint.modules()}
    assert classes == {"Embedding", "Norm", "Linear", "Attention", "MLP", "Router", "Experts"}
    expert_types = {
        tensor.tensor_type.name
        for tensor in gguf.GGUFReader(demo_model.path()).tensors
        if "_exps." in tensor.name
    }
    assert expert_types == {"Q4_0"}


@pytest.mark.parametrize("variant", ["instruct", "thinking", "k2.5"])
def test_it_is_sampled_at_the_temperature_that_its_file_names(variant, engine, checkpoint) -> None:
    assert 0 < checkpoint.metadata["general.sampling.temp"] < 0.6  # cooler than Kimi K2
    temperature = engine.template.with_variant(variant).default_temperature
    assert temperature == pytest.approx(checkpoint.metadata["general.sampling.temp"])


def test_it_says_who_it_is_and_that_it_is_not_kimi(engine) -> None:
    said = answer(engine, user("Who are you?"))
    assert "hybrid-k2" in said and "demo" in said
    assert answer(engine, user("Are you Kimi?")).startswith("No")


def test_it_greets_and_remembers_a_name(engine) -> None:
    assert answer(engine, user("hello")).startswith(("Hello", "Hi"))
    told = [
        *user("My name is Anna."),
        {"role": "assistant", "content": "Nice to meet you, Anna!"},
        *user("What is my name?"),
    ]
    assert "Anna" in answer(engine, told)


@pytest.mark.parametrize(
    ("question", "key"),
    [
        ("How much RAM do I need for K2?", "640 GB"),
        ("Where can I get Kimi K2?", "GGUF"),
        ("How do I start a server?", "hybrid-k2 serve"),
        ("What is a rule file?", "YAML"),
    ],
)
def test_it_answers_questions_about_hybrid_k2(question: str, key: str, engine) -> None:
    assert key in answer(engine, user(question))


@pytest.mark.parametrize("variant", ["thinking", "k2.5"])
def test_it_thinks_before_it_answers_where_the_template_asks_for_it(variant: str, engine) -> None:
    thought, end, said = answer(engine, user("What is 17 + 25?"), variant).partition("</think>")
    assert end and len(thought) > 20 and "42" in said
    assert "<think>" not in answer(engine, user("What is 17 + 25?"))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_ranks_and_merges_cut_a_text_alike(text: str, tokenizer, merging) -> None:
    ids = tokenizer.encode(text)
    assert ids == merging.encode(text).ids
    assert tokenizer.decode(ids) == text


def test_the_vocabulary_shortens_english(tokenizer) -> None:
    text = " ".join(TEXTS["prose"].split())
    assert len(text) / len(tokenizer.encode(text)) > 2.5


def test_merges_stand_in_id_order_and_reach_every_token(checkpoint, text_tokens) -> None:
    pairs = build_vocabulary.merges_of(text_tokens)
    assert ["".join(pair) for pair in pairs] == [t for t in text_tokens if len(t) > 1]
    assert [" ".join(pair) for pair in pairs] == list(checkpoint.metadata["tokenizer.ggml.merges"])


def test_an_unreachable_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'abc'.*not a pair"):
        build_vocabulary.merges_of(["a", "b", "c", "abc"])


def test_control_tokens_have_k2s_names_in_k2s_order(k2_data: Path, text_tokens, tokenizer) -> None:
    config = json.loads((k2_data / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = {int(key): entry["content"] for key, entry in config["added_tokens_decoder"].items()}
    first = min(named)
    for token_id, name in named.items():
        if name not in ("[UNK]", "[PAD]"):  # the last two of K2's block of 256, and of ours of 32
            assert tokenizer.special_id(name) == len(text_tokens) + token_id - first


def test_tokenizer_json_holds_the_same_vocabulary(tokenizer) -> None:
    from tokenizers import Tokenizer as Peer

    peer = Peer.from_file(str(demo_model.path().with_name("tokenizer.json")))
    assert peer.get_vocab_size() == tokenizer.vocab_size
    assert peer.token_to_id("<|im_end|>") == tokenizer.special_id("<|im_end|>")
    ids = peer.encode("<|im_user|>user<|im_middle|>hi<|im_end|>").ids
    assert tokenizer.decode(ids) == "<|im_user|>user<|im_middle|>hi<|im_end|>"
    assert ids[0] == tokenizer.special_id("<|im_user|>")
    peer.encode_special_tokens = True  # what users type spells no control token
    for text in TEXTS.values():
        assert peer.encode(text).ids == tokenizer.encode(text)


@pytest.mark.parametrize("messages", DIALOGUES.values(), ids=DIALOGUES.keys())
def test_the_files_template_renders_what_hybrid_k2_renders(messages, checkpoint, tokenizer) -> None:
    chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    # K2's own tokenizer sorts the keys of tools before its template sees them.
    tools = [{"function": {"name": "weather", "parameters": {}}, "type": "function"}]
    for declared in (None, tools):
        (text,), _ = chat_template_utils.render_jinja_template(
            [messages],
            tools=declared,
            chat_template=checkpoint.metadata["tokenizer.chat_template"],
            add_generation_prompt=True,
        )
        ids = ChatTemplate.for_model(tokenizer, checkpoint.metadata).render(messages, declared)
        assert tokenizer.decode(ids) == text


def test_answers_end_by_themselves_and_hold_no_control_token(engine) -> None:
    prompt = engine.template.render([{"role": "user", "content": "hello"}])
    answers = [
        list(engine.generate(prompt, SamplingParams(temperature=0.6, seed=seed, max_tokens=400)))
        for seed in range(3)
    ]
    first_control = engine.tokenizer.vocab_size - build_vocabulary.NUM_CONTROL_IDS
    assert all(len(ids) < 400 for ids in answers)
    assert all(token_id < first_control for ids in answers for token_id in ids)


def test_the_gguf_package_reads_the_same_tensors(checkpoint) -> None:
    reader = gguf.GGUFReader(demo_model.path())
    assert len(reader.tensors) == len(checkpoint.tensors)
    assert sum(int(tensor.n_bytes) for tensor in reader.tensors) == checkpoint.num_bytes


def test_llama_cpp_reads_the_vocabulary_alike(tokenizer) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    peer = llama_cpp.Llama(str(demo_model.path()), vocab_only=True, verbose=False)
    text = TEXTS["prose"]
    assert peer.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text)
    (end,) = peer.tokenize(b"<|im_end|>", add_bos=False, special=True)
    assert end == tokenizer.special_id("<|im_end|>") and end in tokenizer.eos_ids
