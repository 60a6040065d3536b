"""Trained weights to a GGUF file of Kimi K2, vocabulary included, and back from one.

kv_b is stored as k_b and v_b, as mainline llama.cpp wants it. Routed experts in Q4_0 (their rows
are too short for K quants), norms, routers and biases in F32 as in every K2 file, the rest in Q8_0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import gguf
import torch
from torch import Tensor

from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.checkpoint.gguf_names import to_gguf
from hybrid_k2.checkpoint.gguf_writer import add_k2_metadata, tensor_shapes
from hybrid_k2.config import K2Config
from hybrid_k2.demo_model.build_vocabulary import add_tokenizer
from hybrid_k2.quant import by_name

TEMPERATURE = 0.3  # what the file recommends: a model this small errs where it is left much choice


def stored_type(name: str) -> str:
    """The type of a tensor, by its canonical name."""
    if "norm" in name or ".mlp.gate." in name:
        return "F32"
    return "Q4_0" if ".mlp.experts." in name else "Q8_0"


def write_gguf(
    weights: Mapping[str, Tensor],
    config: K2Config,
    tokens: Sequence[str],
    file: Path,
    type_of: Callable[[str], str] = stored_type,
) -> None:
    """Writes the file, replacing it. weights: as `tensor_shapes(config)` has them."""
    writer = gguf.GGUFWriter(file, arch="deepseek2")
    add_k2_metadata(writer, config)
    writer.add_license("apache-2.0")
    writer.add_float32("general.sampling.temp", TEMPERATURE)
    add_tokenizer(writer, tokens, thinking=True)
    for name, values in split_heads(weights, config):
        quant = by_name(type_of(name))
        data = quant.quantise(values.detach().float().cpu().contiguous().numpy())
        kind = gguf.GGMLQuantizationType(quant.ggml_type)
        writer.add_tensor(to_gguf(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def split_heads(weights: Mapping[str, Tensor], config: K2Config) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a file's order, kv_b as k_b [heads, rank, nope] and v_b [heads, v, rank]."""
    for name, _ in tensor_shapes(config):
        if not name.endswith("kv_b_proj.weight"):
            yield name, weights[name]
            continue
        heads = weights[name].unflatten(0, (config.num_attention_heads, -1))
        k_b, v_b = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        yield name.replace("kv_b_proj", "k_b_proj"), k_b.transpose(1, 2)
        yield name.replace("kv_b_proj", "v_b_proj"), v_b


def read_gguf(file: Path) -> tuple[K2Config, dict[str, Tensor]]:
    """The config and float32 weights of a file of `write_gguf`, kv_b put together again."""
    checkpoint = open_checkpoint(file)
    config = checkpoint.config
    stored = {name: tensor.dequantise() for name, tensor in checkpoint.tensors.items()}
    weights = {}
    for name, shape in tensor_shapes(config):
        if name.endswith("kv_b_proj.weight"):
            k_b = stored[name.replace("kv_b_proj", "k_b_proj")].transpose(1, 2)
            v_b = stored[name.replace("kv_b_proj", "v_b_proj")]
            weights[name] = torch.cat([k_b, v_b], dim=1).reshape(shape)
        else:
            weights[name] = stored[name].reshape(shape)
    checkpoint.close()
    return config, weights


def rounded(weights: Mapping[str, Tensor], round_to: Mapping[str, Callable[[Tensor], Tensor]]):
    """The weights as `stored_type` stores them; round_to: a rounding for each type's name."""
    return {
        name: round_to[kind](weight) if (kind := stored_type(name)) in round_to else weight
        for name, weight in weights.items()
    }
