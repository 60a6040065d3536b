"""Files that lie: each is a ModelFileError with the file's name, soon, and never a crash.

The small writer here packs exactly what a test says, true or not; it shares no code with the
reader or with the gguf package.
"""

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_factory import k_quant_config, tiny_config, write_tiny_k2

from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.checkpoint.gguf_file import read_gguf
from hybrid_k2.errors import HybridK2Error, ModelFileError
from hybrid_k2.quant.known_types import IK_LLAMA, MAINLINE

U8, U32, F32, STRING, ARRAY = 0, 4, 6, 8, 9


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: bytes, length: int | None = None) -> bytes:
    return u64(len(value) if length is None else length) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + u32(kind) + value


def tensor(name: bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def gguf_bytes(
    keys: list[bytes] = (),
    tensors: list[bytes] = (),
    data: bytes = b"",
    num_keys: int | None = None,
    num_tensors: int | None = None,
    version: int = 3,
    magic: bytes = b"GGUF",
) -> bytes:
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        (len(keys) if num_keys is None else num_keys),
    )
    header = magic + u32(version) + u64(counts[0]) + u64(counts[1])
    header += b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


SOUND = gguf_bytes([key(b"a", U32, u32(1))], [tensor(b"t", (8, 4))], bytes(128))

LIES: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", r"empty \(0 bytes\)"),
    "three bytes": (b"GGU", "not a GGUF"),
    "another magic": (gguf_bytes(magic=b"GGML"), "not a GGUF"),
    "a zip file": (b"PK\x03\x04" + bytes(100), "not a GGUF"),
    "version 1": (gguf_bytes(version=1), "version 1"),
    "version 99": (gguf_bytes(version=99), "version 99"),
    "big endian": (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
    "2**63 keys": (gguf_bytes(num_keys=1 << 63), "keys; at most"),
    "2**63 tensors": (gguf_bytes(num_tensors=1 << 63), "tensors; at most"),
    "one key too many": (gguf_bytes([key(b"a", U32, u32(1))], num_keys=2), "."),
    "one tensor too many": (
        gguf_bytes(tensors=[tensor(b"t", (8,))], num_tensors=2, data=bytes(32)),
        ".",
    ),
    "a key of 2**63 bytes": (gguf_bytes([text(b"a", 1 << 63) + u32(U32)]), "9223372036854775808"),
    "a key of 2**64-1 bytes": (gguf_bytes([text(b"a", 2**64 - 1) + u32(U32)]), "claims"),
    "a key past the end": (gguf_bytes([text(b"a", 5000) + u32(U32)]), "ends inside"),
    "a key that is not UTF-8": (gguf_bytes([key(b"\xff\xfe", U32, u32(1))]), "not UTF-8"),
    "a value that is not UTF-8": (gguf_bytes([key(b"a", STRING, text(b"\xff"))]), "'a'.* UTF-8"),
    "an unknown value type": (gguf_bytes([key(b"a", 77, u32(1))]), "'a'.*unknown value type 77"),
    "a key twice": (gguf_bytes([key(b"a", U32, u32(1))] * 2), "'a' occurs twice"),
    "2**62 numbers": (gguf_bytes([key(b"a", ARRAY, u32(U32) + u64(1 << 62))]), "'a'"),
    "2**64-1 bytes": (gguf_bytes([key(b"a", ARRAY, u32(U8) + u64(2**64 - 1))]), "'a'"),
    "2**62 strings": (gguf_bytes([key(b"a", ARRAY, u32(STRING) + u64(1 << 62))]), "'a'"),
    "strings past the end": (
        gguf_bytes([key(b"a", ARRAY, u32(STRING) + u64(2) + text(b"x", 2**63) + text(b"y"))]),
        "'a'",
    ),
    "an array of arrays": (
        gguf_bytes([key(b"a", ARRAY, u32(ARRAY) + u64(1) + u32(U8) + u64(0))]),
        "an array in an array",
    ),
    "alignment 0": (gguf_bytes([key(b"general.alignment", U32, u32(0))]), "alignment is 0"),
    "alignment 48": (gguf_bytes([key(b"general.alignment", U32, u32(48))]), "alignment is 48"),
    "alignment 2**31": (gguf_bytes([key(b"general.alignment", U32, u32(1 << 31))]), "alignment"),
    "alignment of text": (gguf_bytes([key(b"general.alignment", STRING, text(b"32"))]), "'32'"),
    "no dimensions": (gguf_bytes(tensors=[tensor(b"t", ())]), "'t' has 0 dimensions"),
    "5 dimensions": (gguf_bytes(tensors=[tensor(b"t", (1,) * 5)]), "'t' has 5 dimensions"),
    "2**32-1 dimensions": (
        gguf_bytes(tensors=[text(b"t") + u32(2**32 - 1) + bytes(64)]),
        "'t' has 4294967295 dimensions",
    ),
    "a dimension of 0": (gguf_bytes(tensors=[tensor(b"t", (8, 0))]), "'t' has the shape"),
    "a size that overflows": (
        gguf_bytes(tensors=[tensor(b"t", (1 << 32, 1 << 32, 1 << 32))], data=bytes(64)),
        "'t' ends at byte",
    ),
    "a size that wraps to 0": (
        gguf_bytes(tensors=[tensor(b"t", (1 << 62, 4))], data=bytes(64)),
        "'t' ends at byte",
    ),
    "rows that are no whole blocks": (
        gguf_bytes(tensors=[tensor(b"t", (100,), kind=12)], data=bytes(256)),
        "'t' has rows of 100 weights.*Q4_K",
    ),
    "data past the end": (gguf_bytes(tensors=[tensor(b"t", (8, 4))], data=bytes(127)), "cut short"),
    "an offset past the end": (
        gguf_bytes(tensors=[tensor(b"t", (8,), offset=1 << 63)], data=bytes(32)),
        "'t' ends at byte",
    ),
    "an unknown type past the end": (
        gguf_bytes(tensors=[tensor(b"t", (8,), kind=144, offset=1 << 40)], data=bytes(32)),
        "'t' ends at byte",
    ),
    "an unaligned offset": (
        gguf_bytes(tensors=[tensor(b"t", (8,), offset=16)], data=bytes(64)),
        "'t' starts at 16",
    ),
    "overlapping tensors": (
        gguf_bytes(tensors=[tensor(b"t", (16,)), tensor(b"u", (8,), offset=32)], data=bytes(64)),
        "'t' and 'u' overlap",
    ),
    "tensors at one place": (
        gguf_bytes(tensors=[tensor(b"t", (8,)), tensor(b"u", (8,))], data=bytes(64)),
        "'t' and 'u' overlap",
    ),
    "a tensor twice": (
        gguf_bytes(tensors=[tensor(b"t", (8,)), tensor(b"t", (8,), offset=32)], data=bytes(64)),
        "'t' occurs twice",
    ),
}


def refused(path: Path, said: str, read: Callable[[Path], object] = open_checkpoint) -> None:
    """`read` raises ModelFileError that names the path and matches `said`, within a second."""
    started = time.process_time()
    with pytest.raises(ModelFileError, match=said) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert time.process_time() - started < 1


def test_the_writer_here_makes_sound_files(tmp_path: Path) -> None:
    (tmp_path / "sound.gguf").write_bytes(SOUND)
    file = read_gguf(tmp_path / "sound.gguf")
    assert file.metadata["a"] == 1 and file.tensors["t"].shape == (4, 8)
    assert list(file.tensors) == [t.name for t in gguf.GGUFReader(file.path).tensors]


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_file_is_refused(tmp_path: Path, lie: str) -> None:
    raw, said = LIES[lie]
    path = tmp_path / "lying.gguf"
    path.write_bytes(raw)
    refused(path, said)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent.gguf", "No such file")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(SOUND)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    refused(path, "Permission denied")


def test_a_device_is_not_a_model() -> None:
    refused(Path(os.devnull), "empty")


def test_a_file_cut_at_any_byte_of_its_header_is_refused(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf", tiny_config(num_hidden_layers=2))
    raw = model.path.read_bytes()
    first_data = min(tensor.offset for tensor in read_gguf(model.path).tensors.values())
    path = tmp_path / "cut.gguf"
    # Every byte of the keys that come first, every 7th of the rest, and some cuts of the data.
    cuts = [*range(400), *range(400, first_data, 7), first_data, len(raw) // 2, len(raw) - 32]
    path.write_bytes(raw)
    for cut in reversed(cuts):
        os.truncate(path, cut)
        with pytest.raises(ModelFileError, match=r"cut\.gguf"):
            read_gguf(path)


def flipped(raw: bytes, last: int, count: int) -> Iterator[tuple[int, bytes]]:
    """`raw` with one to three random bits of the first `last` bytes flipped, `count` times."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        bits = np.frombuffer(raw, np.uint8).copy()
        for position in rng.integers(0, last, rng.integers(1, 4)):
            bits[position] ^= 1 << rng.integers(0, 8)
        yield seed, bits.tobytes()


def test_flipped_bits_are_harmless_or_an_error_of_ours(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf", tiny_config(num_hidden_layers=2), quants="Q4_0")
    raw = model.path.read_bytes()
    first_data = min(tensor.offset for tensor in read_gguf(model.path).tensors.values())
    path = tmp_path / "flipped.gguf"
    refusals = 0
    for seed, bits in flipped(raw, first_data, count=400):
        path.write_bytes(bits)
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint.metadata:
                checkpoint.metadata[name]
        except HybridK2Error as error:
            refusals += 1
            assert "flipped.gguf" in str(error), seed
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    assert refusals > 100


@pytest.mark.parametrize("ggml_type", [144, 212, 399, 40, 41, 5000])
def test_a_type_that_is_not_read_is_named_with_its_tensor(tmp_path: Path, ggml_type: int) -> None:
    def retype(writer: gguf.GGUFWriter) -> None:
        for layer in (1, 2):
            writer.tensors[0][f"blk.{layer}.ffn_up_exps.weight"].dtype = ggml_type

    path = write_tiny_k2(tmp_path / "k2.gguf", quants="Q8_0", edit=retype).path
    name = IK_LLAMA.get(ggml_type) or MAINLINE.get(ggml_type) or "unknown"
    hint = "use a mainline quant" if ggml_type in IK_LLAMA else "supported are F32"
    refused(path, rf"blk\.1\.ffn_up_exps\.weight and 1 more.*type {name} \({ggml_type}\).*{hint}")


def edit_key(name: str, value: object) -> Callable[[gguf.GGUFWriter], None]:
    def edit(writer: gguf.GGUFWriter) -> None:
        if value is None:
            del writer.kv_data[0][name]
        else:
            writer.kv_data[0][name].value = value

    return edit


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("general.architecture", "llama", r"general\.architecture is 'llama'"),
        ("general.architecture", None, r"general\.architecture is None"),
        ("deepseek2.block_count", 4, r"missing tensor: model\.layers\.3.*blk\.3"),
        ("deepseek2.block_count", 1 << 23, r"missing tensor"),
        ("deepseek2.expert_count", 9, r"blk\.1\.ffn_gate_inp.*\(8, 64\).*\(9, 64\)"),
        ("deepseek2.vocab_size", 321, r"token_embd.*\(320, 64\).*\(321, 64\)"),
        ("deepseek2.attention.kv_lora_rank", None, r"kv_lora_rank is missing"),
        ("deepseek2.expert_gating_func", 1, r"expert_gating_func is 1"),
    ],
)
def test_a_key_that_contradicts_the_tensors_is_refused(
    tmp_path: Path, name: str, value: object, said: str
) -> None:
    refused(write_tiny_k2(tmp_path / "k2.gguf", edit=edit_key(name, value)).path, said)


@pytest.mark.parametrize(
    "name",
    [
        "token_embd.weight",
        "output.weight",
        "output_norm.weight",
        "blk.0.ffn_down.weight",
        "blk.1.exp_probs_b.bias",
        "blk.2.ffn_down_exps.weight",
        "blk.2.attn_k_b.weight",
        "blk.2.attn_q_a_norm.weight",
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    def remove(writer: gguf.GGUFWriter) -> None:
        del writer.tensors[0][name]

    model = write_tiny_k2(tmp_path / "k2.gguf", edit=remove)
    refused(model.path, f"missing tensor.*{name}")


def test_fused_gate_and_up_is_refused_with_the_way_out(tmp_path: Path) -> None:
    def fuse(writer: gguf.GGUFWriter) -> None:
        tensors = writer.tensors[0]
        for layer in (1, 2):
            del tensors[f"blk.{layer}.ffn_gate_exps.weight"]
            del tensors[f"blk.{layer}.ffn_up_exps.weight"]
            writer.add_tensor(
                f"blk.{layer}.ffn_gate_up_exps.weight", np.ones((8, 64, 64), np.float32)
            )

    refused(write_tiny_k2(tmp_path / "k2.gguf", edit=fuse).path, "without --fuse-gate-up-exps")


def test_a_part_with_too_few_tensors_is_refused(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf", split_max_tensors=30)
    raw = bytearray(model.path.read_bytes())
    name = b"split.tensors.count"
    position = raw.index(name) + len(name) + 4
    raw[position : position + 4] = u32(7)
    model.path.write_bytes(raw)
    refused(model.path, r"split\.tensors\.count is 7")


@pytest.mark.parametrize(("count", "said"), [(0xFFFF, "65535; 10000"), (3000, "name does not end")])
def test_a_split_count_that_lies_is_refused(tmp_path: Path, count: int, said: str) -> None:
    path = tmp_path / "k2-00001-of-00002.gguf"
    path.write_bytes(
        gguf_bytes(
            [key(b"split.count", 2, struct.pack("<H", count))], [tensor(b"t", (8,))], bytes(32)
        )
    )
    refused(path, said)


def test_tensors_larger_than_memory_are_only_mapped(tmp_path: Path) -> None:
    """A terabyte of F32 that is not there: refused at once for its shape, not read."""
    path = tmp_path / "sparse.gguf"
    rows = 1 << 30
    header = gguf_bytes(
        [key(b"general.architecture", STRING, text(b"deepseek2"))],
        [tensor(b"token_embd.weight", (256, rows))],
    )
    path.write_bytes(header)
    try:
        os.truncate(path, len(header) + 4 * 256 * rows)
    except OSError:
        pytest.skip("this file system holds no sparse file of a terabyte")
    refused(path, "is missing")


def test_strings_in_an_array_that_are_not_utf_8_are_refused_when_used(tmp_path: Path) -> None:
    path = tmp_path / "k2.gguf"
    strings = u32(STRING) + u64(2) + text(b"fine") + text(b"\xff")
    path.write_bytes(gguf_bytes([key(b"tokens", ARRAY, strings)], [tensor(b"t", (8,))], bytes(32)))
    refused(path, "string 1 of the array 'tokens'", lambda path: read_gguf(path).metadata["tokens"])


def test_k_quants_of_a_model_cut_in_its_last_tensor_name_that_tensor(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf", k_quant_config(num_hidden_layers=2), quants="Q8_0")
    os.truncate(model.path, model.path.stat().st_size - 4096)
    refused(model.path, r"tensor 'output\.weight' ends at byte.*cut short, download it again")


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    parts = [tmp_path / f"k2-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, path in enumerate(parts):
        split = {b"split.no": number, b"split.count": 2}
        keys = [key(name, 2, struct.pack("<H", value)) for name, value in split.items()]
        path.write_bytes(gguf_bytes(keys, [tensor(b"t", (8,))], bytes(32)))
    with pytest.raises(ModelFileError, match=rf"{parts[1].name}: 't' is also in {parts[0].name}"):
        open_checkpoint(parts[0])
