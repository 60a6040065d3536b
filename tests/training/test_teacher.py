"""The teacher's generation against transformers' Llama on a small random file."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from demo_k2 import chat_prompts, distil
from demo_k2.teacher import Teacher, prompt_text
from demo_k2.words import Draw

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD, WIDTH = 2, 32, 4, 2, 8, 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<x{i}>" for i in range(14))]
LETTERS = [chr(i) for i in range(0x21, 0x7F)] + ["\u0120", "\u010a"]
TOKENS = [*SPECIAL, *LETTERS, "he", "ll", "hell", "hello"]


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)

    def matrix(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(2 * shape[-1] ** -0.5)

    made = {"token_embd": matrix(len(TOKENS), HIDDEN) * 3, "output_norm": np.ones(HIDDEN, "f4")}
    for i in range(LAYERS):
        shapes = {
            "attn_q": (HEADS * HEAD, HIDDEN), "attn_k": (KV_HEADS * HEAD, HIDDEN),
            "attn_v": (KV_HEADS * HEAD, HIDDEN), "attn_output": (HIDDEN, HEADS * HEAD),
            "ffn_gate": (WIDTH, HIDDEN), "ffn_up": (WIDTH, HIDDEN), "ffn_down": (HIDDEN, WIDTH),
        }  # fmt: skip
        made |= {f"blk.{i}.{name}": matrix(*shape) for name, shape in shapes.items()}
        made |= {f"blk.{i}.{name}": 1 + 0.1 * matrix(HIDDEN) for name in ("attn_norm", "ffn_norm")}
    return made


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.gguf"
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["h e", "l l", "he ll", "hell o"])
    for name, values in weights.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def transformers_llama(weights):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=HIDDEN, intermediate_size=WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        head_dim=HEAD, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    state = {}
    for name, values in weights.items():
        tensor = torch.from_numpy(np.array(values))
        if name in ("token_embd", "output_norm"):
            state["model.embed_tokens.weight" if name == "token_embd" else "model.norm.weight"] = (
                tensor
            )
            continue
        _, layer, part = name.split(".")
        if part in ("attn_q", "attn_k"):  # GGUF's rows of a head alternate between its two halves
            heads = tensor.unflatten(0, (-1, HEAD // 2, 2))
            tensor = heads.transpose(1, 2).flatten(0, 2)
        state[f"model.layers.{layer}.{names[part]}.weight"] = tensor
    model = transformers.LlamaForCausalLM(config).float().eval()
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model


def test_likeliest_answers_are_those_of_transformers(file: Path, weights) -> None:
    teacher = Teacher(file, "cpu", torch.float32)
    prompts = teacher.encode(["hello you", "ask m all", "zq!x?abhe"])
    width = min(map(len, prompts))
    prompts = [ids[:width] for ids in prompts]
    answers = teacher.answers(prompts, 30, temperature=1e-4, min_p=0.0, seed=1)
    model = transformers_llama(weights)
    for ids, (text, ended) in zip(prompts, answers, strict=True):
        allowed = [*range(len(SPECIAL), len(TOKENS)), 2]
        forbidden = [[i] for i in range(len(TOKENS)) if i not in allowed]
        made = model.generate(
            torch.tensor([ids]), max_new_tokens=30, do_sample=False, eos_token_id=2,
            pad_token_id=2, bad_words_ids=forbidden,
        )[0, width:].tolist()  # fmt: skip
        assert text == teacher.tokenizer.decode(made)
        assert ended == (made[-1] == 2)


def test_markers_are_single_tokens_and_words_are_merged(file: Path) -> None:
    teacher = Teacher(file, "cpu", torch.float32)
    (ids,) = teacher.encode([prompt_text([("user", "hello")], "S")])
    assert ids.count(TOKENS.index("<|im_start|>")) == 3
    assert ids.count(TOKENS.index("<|im_end|>")) == 2 and TOKENS.index("hello") in ids


def test_conversations_are_written_until_the_time_is_up(file: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(chat_prompts, "cleaned", lambda answer, ended: answer or "Yes.")
    monkeypatch.setattr(chat_prompts, "repeats", lambda answer, earlier: False)
    monkeypatch.setattr(distil, "MAX_NEW_TOKENS", 4)
    told = tmp_path / "told.jsonl"
    count = distil.distil(file, told, 0.5, seed=1, num_questions=12, rows=4, device="cpu")
    lines = told.read_text().splitlines()
    assert count == len(lines) > 0


def test_follow_ups_wait_for_a_batch_and_none_is_lost(file: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(chat_prompts, "cleaned", lambda answer, ended: answer or "Yes.")
    monkeypatch.setattr(chat_prompts, "repeats", lambda answer, earlier: False)
    monkeypatch.setattr(chat_prompts, "question", lambda draw: "Why?")
    others = ["How?", "How?", "How?", "But why?", "And then what?", "Why is that so?"]
    monkeypatch.setattr(chat_prompts, "follow_up", lambda draw: draw.choice(others))
    monkeypatch.setattr(distil, "MAX_NEW_TOKENS", 2)
    monkeypatch.setattr(distil, "FOLLOWED_UP", 1.0)
    asked = []
    answers = Teacher.answers

    def counted(self, prompts, *options):
        asked.append(len(prompts))
        return answers(self, prompts, *options)

    monkeypatch.setattr(Teacher, "answers", counted)
    told = tmp_path / "told.jsonl"
    count = distil.distil(file, told, 0.01, seed=1, num_questions=16, rows=16, device="cpu")
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    assert len(lines) == count == 16
    assert min(asked) >= 4
    assert {len(line) for line in lines} <= {1, 2} and 2 in map(len, lines)


def test_answers_are_cut_at_a_sentence_and_poor_ones_left_out() -> None:
    cleaned = chat_prompts.cleaned
    assert cleaned("A lake is water. It is", ended=False) == "A lake is water."
    assert cleaned(" A lake is water.", ended=True) == "A lake is water."
    poor_ones = ["No", "It is a lake", "As an AI, I cannot.", "1. A lake.", "It is. It is. It is."]
    for poor in [*poor_ones, "I'm just a regular human here."]:
        assert cleaned(poor, ended=True) is None
    stuck = "They are not afraid to show, they are not afraid to show, not afraid to show it."
    assert chat_prompts.cleaned(stuck, ended=True) is None
    beside = chat_prompts.is_beside_the_point
    assert beside("How does a cave form?", "The pyramids were built by the Egyptians.")
    assert not beside("How does a cave form?", "Water slowly makes caves in soft rock.")
    assert not beside("I am sad today.", "What happened?")
    assert chat_prompts.repeats("A lake is a lake.", "A lake is a lake too.")
    assert not chat_prompts.repeats("You can swim there in summer.", "A lake is water.")


def test_questions_are_many_and_whole() -> None:
    draw = Draw(1)
    questions = [chat_prompts.question(draw) for _ in range(400)]
    assert len(set(questions)) > 340
    assert not any(set("<>{}|") & set(question) for question in questions)
