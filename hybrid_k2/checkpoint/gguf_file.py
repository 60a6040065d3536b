"""One GGUF file, read without trust: its keys, its tensors' places, its bytes mapped read-only.

Every length, count and offset is checked against the file before it is used, so a truncated or
lying file is a ModelFileError and never a crash or a large allocation. Knows nothing of Kimi K2, of
split sets, or of which tensor types can be computed with.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hybrid_k2.errors import ModelFileError
from hybrid_k2.quant import by_ggml_type

MAX_KEYS = 1 << 20
MAX_TENSORS = 1 << 20
MAX_STRING_BYTES = 64 << 20
MAX_DIMS = 4
MAX_ALIGNMENT = 64 << 10
DEFAULT_ALIGNMENT = 32

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
# A key is at least a length, a type and a byte; a tensor at least a length, dims, type and offset.
_MIN_KEY_BYTES, _MIN_TENSOR_BYTES = 13, 32


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies. shape: numpy order (`ne` reversed); offset: from the start of file.

    num_bytes is None for a type whose size is not known here, which therefore could not be checked.
    """

    name: str
    ggml_type: int
    shape: tuple[int, ...]
    offset: int
    num_bytes: int | None


@dataclass(frozen=True, slots=True, eq=False)
class GgufFile:
    """A parsed file. data: uint8 [file size], mapped read-only; tensors in the file's order."""

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    data: np.ndarray

    def bytes_of(self, tensor: GgufTensor) -> np.ndarray:
        """uint8 [num_bytes]: the tensor's bytes where they lie."""
        return self.data[tensor.offset : tensor.offset + tensor.num_bytes]


class Metadata(Mapping[str, Any]):
    """The keys of a file. Arrays of strings are decoded when they are first asked for.

    K2's vocabulary and merges are 327,000 strings, which a plan or a listing has no use for.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _StringArray):
            value = self._values[key] = value.decode()
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def length(self, key: str) -> int:
        """Elements of an array key, without decoding it; 0 where there is no such array."""
        value = self._values.get(key, ())
        return len(value) if isinstance(value, (list, tuple, np.ndarray, _StringArray)) else 0


def read_gguf(path: Path) -> GgufFile:
    """Parses and checks one file; raises ModelFileError for anything that is not a sound GGUF."""
    data = _map(path)
    reader = _Reader(path, data)
    magic = bytes(data[:4])
    if magic != b"GGUF":
        reader.fail(f"not a GGUF file: it starts with {magic!r}, not b'GGUF'")
    reader.position = 4
    version = reader.u32("the version")
    if version not in (2, 3):
        if version & 0xFFFF == 0:
            reader.fail("a big-endian GGUF; only little-endian files are supported")
        reader.fail(f"GGUF version {version}; 2 and 3 are supported, so convert the model anew")
    num_tensors = reader.count("tensor", MAX_TENSORS, _MIN_TENSOR_BYTES)
    num_keys = reader.count("key", MAX_KEYS, _MIN_KEY_BYTES)

    values: dict[str, Any] = {}
    for index in range(num_keys):
        key = reader.string(f"the name of key {index}")
        if key in values:
            reader.fail(f"the key {key!r} occurs twice")
        values[key] = reader.value(key)
    alignment = _alignment(reader, values.get("general.alignment", DEFAULT_ALIGNMENT))

    infos = []
    for index in range(num_tensors):
        infos.append(reader.tensor_info(index))
    start = -(-reader.position // alignment) * alignment
    tensors = _place(reader, infos, start, alignment)
    return GgufFile(path, version, alignment, Metadata(values), tensors, data)


def _map(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size == 0:
            raise ModelFileError(f"{path} is empty (0 bytes); download it again")
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        reason = error.strerror or error
        raise ModelFileError(f"{path} cannot be read: {reason}; check the path") from None


def _alignment(reader: _Reader, alignment: Any) -> int:
    is_power = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
    if not is_power or alignment > MAX_ALIGNMENT:
        reader.fail(
            f"general.alignment is {alignment!r}; a power of two up to {MAX_ALIGNMENT} is expected"
        )
    return alignment


def _place(
    reader: _Reader, infos: list[tuple[str, int, tuple[int, ...], int]], start: int, alignment: int
) -> dict[str, GgufTensor]:
    """Checks each tensor's size and place in the file, and that no two share bytes."""
    tensors: dict[str, GgufTensor] = {}
    for name, ggml_type, shape, relative in infos:
        if name in tensors:
            reader.fail(f"the tensor {name!r} occurs twice")
        if relative % alignment:
            reader.fail(f"tensor {name!r} starts at {relative}, no multiple of {alignment}")
        num_bytes = None
        quant = by_ggml_type(ggml_type)
        if quant is not None:
            if shape[-1] % quant.block_size:
                reader.fail(
                    f"tensor {name!r} has rows of {shape[-1]} weights, which is no whole number of "
                    f"{quant.name} blocks of {quant.block_size}"
                )
            num_bytes = quant.num_bytes(math.prod(shape))
        end = start + relative + (num_bytes or 0)
        if end > reader.size:
            reader.fail(
                f"tensor {name!r} ends at byte {end}, but the file has {reader.size}: "
                "it is cut short, download it again"
            )
        tensors[name] = GgufTensor(name, ggml_type, shape, start + relative, num_bytes)
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for first, second in pairwise(ordered):
        if first.offset + (first.num_bytes or 1) > second.offset:
            reader.fail(f"tensors {first.name!r} and {second.name!r} overlap")
    return tensors


class _Reader:
    """A cursor over the header's bytes; every read is checked against the file's end."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self._path, self._data, self._view = path, data, memoryview(data)
        self.size = len(data)
        self.position = 0

    def fail(self, problem: str) -> NoReturn:
        raise ModelFileError(f"{self._path}: {problem}")

    def u32(self, what: str) -> int:
        return self._integer(_U32, what)

    def u64(self, what: str) -> int:
        return self._integer(_U64, what)

    def count(self, what: str, limit: int, min_bytes: int) -> int:
        """A number of things that must still fit in the file and under `limit`."""
        count = self.u64(f"the {what} count")
        limit = min(limit, self.size // min_bytes)
        if count > limit:
            self.fail(f"claims {count} {what}s; at most {limit} fit")
        return count

    def string(self, what: str) -> str:
        length = self.u64(f"the length of {what}")
        raw = self._take(self._checked_length(length, what), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def value(self, key: str) -> Any:
        kind = self.u32(f"the type of key {key!r}")
        if kind == _STRING:
            return self.string(f"key {key!r}")
        if kind == _ARRAY:
            return self._array(key)
        dtype = self._dtype(kind, key)
        return np.frombuffer(self._take(dtype.itemsize, f"key {key!r}"), dtype)[0].item()

    def tensor_info(self, index: int) -> tuple[str, int, tuple[int, ...], int]:
        """(name, ggml type, shape in numpy order, offset from the start of the data)."""
        name = self.string(f"the name of tensor {index}")
        what = f"tensor {name!r}"
        num_dims = self.u32(f"the dimensions of {what}")
        if not 1 <= num_dims <= MAX_DIMS:
            self.fail(f"{what} has {num_dims} dimensions; 1 to {MAX_DIMS} are possible")
        shape = tuple(self.u64(f"a dimension of {what}") for _ in range(num_dims))[::-1]
        if not all(shape):
            self.fail(f"{what} has the shape {shape}; every dimension must be above 0")
        ggml_type = self.u32(f"the type of {what}")
        return name, ggml_type, shape, self.u64(f"the offset of {what}")

    def _array(self, key: str) -> Any:
        what = f"the array {key!r}"
        kind = self.u32(f"the element type of {what}")
        count = self.u64(f"the length of {what}")
        if kind == _STRING:
            return self._string_array(key, count)
        dtype = self._dtype(kind, key)
        # A view, not a copy: it costs nothing until it is used, however long it claims to be.
        return np.frombuffer(self._take(count * dtype.itemsize, what), dtype)

    def _string_array(self, key: str, count: int) -> _StringArray:
        """Walks the lengths (0.1 us a string) and leaves the decoding for later."""
        if count > (self.size - self.position) // _U64.size:
            self.fail(f"the array {key!r} claims {count} strings, more than fit in the file")
        start = position = self.position
        view, unpack, step = self._view, _U64.unpack_from, _U64.size
        for _ in range(count):
            if position + step > self.size:
                self._cut_short(f"the array {key!r}")
            position += step + unpack(view, position)[0]
        if position > self.size:
            self._cut_short(f"the array {key!r}")
        self.position = position
        return _StringArray(self._path, key, view[start:position], count)

    def _dtype(self, kind: int, key: str) -> np.dtype:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            nested = " (an array in an array)" if kind == _ARRAY else ""
            self.fail(f"the key {key!r} has the unknown value type {kind}{nested}")
        return dtype

    def _checked_length(self, length: int, what: str) -> int:
        if length > MAX_STRING_BYTES:
            self.fail(f"{what} claims {length} bytes; {MAX_STRING_BYTES} is the limit")
        return length

    def _integer(self, kind: struct.Struct, what: str) -> int:
        return kind.unpack(self._take(kind.size, what))[0]

    def _take(self, num_bytes: int, what: str) -> memoryview:
        end = self.position + num_bytes
        if end > self.size:
            self._cut_short(what)
        taken = self._view[self.position : end]
        self.position = end
        return taken

    def _cut_short(self, what: str) -> NoReturn:
        self.fail(f"the file ends inside {what} (at byte {self.size}); download it again")


@dataclass(frozen=True, slots=True)
class _StringArray:
    """An array of strings as it lies in the file; its lengths have been checked."""

    path: Path
    key: str
    raw: memoryview
    count: int

    def __len__(self) -> int:
        return self.count

    def decode(self) -> list[str]:
        raw, unpack, position = bytes(self.raw), _U64.unpack_from, 0
        strings = []
        try:
            for _ in range(self.count):
                start = position + _U64.size
                position = start + unpack(raw, position)[0]
                strings.append(raw[start:position].decode())
        except UnicodeDecodeError:
            raise ModelFileError(
                f"{self.path}: string {len(strings)} of the array {self.key!r} is not UTF-8"
            ) from None
        return strings
