"""Writes a GGUF of true Kimi K2 width and few layers, for measuring speed: random blocks, no model.

    python benchmarks/make_wide_gguf.py wide.gguf            11 GB: 1 dense and 1 MoE layer of 61

Every block is random bits under scales that keep activations finite and of ordinary size, written
in chunks, so it takes as long as the disk does and little memory. Needs the `tokenizers` package.
Knows the formats' sizes through hybrid_k2.quant only.
"""

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np

from hybrid_k2 import demo_model
from hybrid_k2.bench.synthetic_model import K2
from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.checkpoint.gguf_names import to_gguf
from hybrid_k2.checkpoint.gguf_writer import add_k2_metadata, tensor_shapes
from hybrid_k2.config import K2Config, YarnConfig
from hybrid_k2.demo_model.build_vocabulary import NUM_CONTROL_IDS, add_tokenizer
from hybrid_k2.quant import QuantFormat, by_name
from hybrid_k2.quant.random_blocks import random_blocks

VOCAB_SIZE = 2048
CHUNK_BYTES = 64 << 20
ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT


def wide_config(num_moe_layers: int, num_experts: int) -> K2Config:
    """Kimi-K2-Instruct's config.json with fewer layers, perhaps fewer experts, and few tokens."""
    return replace(
        K2,
        name=f"Kimi K2 width, 1 dense and {num_moe_layers} MoE layers, random",
        vocab_size=VOCAB_SIZE,
        num_hidden_layers=1 + num_moe_layers,
        n_routed_experts=num_experts,
        max_position_embeddings=131072,
        rope_scaling=YarnConfig(factor=32.0, original_max_position_embeddings=4096),
    )


def write(path: Path, config: K2Config, expert_quant: str, dense_quant: str, seed: int = 0) -> None:
    """Writes the file: routed experts in one type, other matrices in another, the rest in F32."""
    writer = gguf.GGUFWriter(path, arch="deepseek2")
    add_k2_metadata(writer, config)
    add_tokenizer(writer, text_tokens(config.vocab_size - NUM_CONTROL_IDS))
    tensors = []
    for name, shape in tensor_shapes(config, latent_heads=True):
        quant = by_name(_type_of(name, expert_quant, dense_quant))
        num_bytes = quant.num_bytes(int(np.prod(shape)))
        ggml_type = gguf.GGMLQuantizationType(quant.ggml_type)
        writer.add_tensor_info(to_gguf(name), shape, np.dtype(np.float32), num_bytes, ggml_type)
        tensors.append((name, shape, quant))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()

    rng = np.random.Generator(np.random.SFC64(seed))
    with path.open("ab") as file:
        _pad(file)
        for name, shape, quant in tensors:
            for chunk in _chunks(rng, name, shape, quant):
                file.write(chunk)
            _pad(file)


def text_tokens(count: int) -> list[str]:
    """The demo model's first tokens: tokens stand in the order of merging, so they need no more."""
    with closing(open_checkpoint(demo_model.path())) as checkpoint:
        return checkpoint.metadata["tokenizer.ggml.tokens"][:count]


def _type_of(name: str, expert_quant: str, dense_quant: str) -> str:
    if "norm" in name or ".mlp.gate." in name:
        return "F32"
    return expert_quant if ".mlp.experts." in name else dense_quant


def _chunks(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], quant: QuantFormat
) -> Iterator[memoryview]:
    """Yields a tensor's bytes, weights of variance 1 / inputs as in a model before training."""
    std = 1.0 if name == "model.embed_tokens.weight" else shape[-1] ** -0.5
    if quant.name == "F32":
        values = rng.standard_normal(shape, np.float32) * np.float32(std)
        if "norm" in name:
            values[:] = 1
        elif name.endswith("e_score_correction_bias"):
            values *= np.float32(0.01)
        yield values.data
        return
    remaining = int(np.prod(shape)) // quant.block_size
    most = CHUNK_BYTES // quant.block_bytes // 8 * 8
    while remaining:
        num_blocks = min(most, remaining)
        blocks = random_blocks(rng, quant, num_blocks, std)
        yield blocks.data
        remaining -= num_blocks


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--moe-layers", type=int, default=1)
    parser.add_argument("--experts", type=int, default=384, help="fewer make a smaller file")
    parser.add_argument("--expert-quant", default="Q4_K", choices=["Q4_0", "Q4_K", "Q6_K", "Q8_0"])
    parser.add_argument("--dense-quant", default="Q8_0", choices=["Q4_0", "Q8_0"])
    options = parser.parse_args()
    config = wide_config(options.moe_layers, options.experts)
    write(options.file, config, options.expert_quant, options.dense_quant)
    print(f"{options.file}: {options.file.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
