"""NaN and infinity are found in every format, wherever a block can hold one, and only there."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_factory import write_tiny_k2

from hybrid_k2.checkpoint import finite, open_checkpoint
from hybrid_k2.quant import FORMATS, QuantFormat, StoredTensor

EVERY_FORMAT = pytest.mark.parametrize("quant", FORMATS.values(), ids=list(FORMATS))
NUM_BLOCKS = 200


def tensor_of(quant: QuantFormat) -> StoredTensor:
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (NUM_BLOCKS, quant.block_bytes), np.uint8)
    if quant.name == "MXFP4":
        blocks[:, 0] %= 253  # the largest exponents overflow
    for offset in quant.half_offsets or (quant.block_bytes - 2,):
        blocks[:, offset + 1] &= 0xBB  # clears a bit of every exponent
    shape = (NUM_BLOCKS, quant.block_size)
    return StoredTensor(quant.name, quant, shape, blocks.reshape(-1))


def breaks(quant: QuantFormat) -> list[dict[int, int]]:
    """Offset -> byte: ways to make a block's scale, or a weight, infinite or NaN."""
    if quant.name == "MXFP4":
        return [{0: 253}, {0: 255}]
    if quant.name == "IQ1_M":  # a nibble in each of the four words
        return [{49: 0, 51: 0, 53: 0xC0, 55: 0x70}, {49: 0xF0, 51: 0xF0, 53: 0xF0, 55: 0xF0}]
    infinity = 0x7F80 if quant.name in ("F32", "BF16") else 0x7C00
    return [
        {offset: bits & 255, offset + 1: bits >> 8}
        for offset in quant.half_offsets or (quant.block_bytes - 2,)
        for bits in (infinity, 0xFFFF)
    ]


@EVERY_FORMAT
def test_the_answer_is_that_of_dequantising(
    quant: QuantFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite, "CHUNK_BYTES", 64 * quant.block_bytes)
    sound = tensor_of(quant)
    assert sound.dequantise().isfinite().all()
    assert finite.find_non_finite([sound]) == []
    for changes in breaks(quant):
        for block in (0, 63, 64, NUM_BLOCKS - 1):
            data = sound.data.copy()
            for offset, byte in changes.items():
                data[block * quant.block_bytes + offset] = byte
            broken = StoredTensor(quant.name, quant, sound.shape, data)
            assert not broken.dequantise().isfinite().all()
            assert finite.find_non_finite([sound, broken]) == [quant.name]


def test_a_models_broken_tensor_is_named(tmp_path: Path) -> None:
    def break_a_scale(writer: gguf.GGUFWriter) -> None:
        data = writer.tensors[0]["blk.1.ffn_up_exps.weight"].tensor
        data[5, 3, :2] = np.array([0x7E00], "<u2").view(np.uint8)

    model = write_tiny_k2(tmp_path / "k2.gguf", quants="Q8_0", edit=break_a_scale)
    tensors = open_checkpoint(model.path).tensors.values()
    assert finite.find_non_finite(tensors) == ["model.layers.1.mlp.experts.up_proj.weight"]
