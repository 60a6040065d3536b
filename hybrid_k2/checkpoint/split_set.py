"""From what a user names (a file, a part of a split set, a directory) to one model's parsed files.

Owns the naming of split files and the consistency of a set. Knows nothing of Kimi K2.
"""

from __future__ import annotations

import re
from pathlib import Path

from hybrid_k2.checkpoint.gguf_file import GgufFile, read_gguf
from hybrid_k2.errors import ModelFileError

_PART_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5,6})-of-(?P<count>\d{5,6})\.gguf$")
_MAX_PARTS = 10_000


def read_model_files(path: Path) -> tuple[GgufFile, ...]:
    """Parses all files of the model at `path`, first part first; the keys are the first file's.

    path: a GGUF file, any part of a split set, or a directory that holds one model.
    Raises ModelFileError, naming missing parts, parts of another set and tensors that occur twice.
    """
    first = read_gguf(_choose(path) if path.is_dir() else path)
    count = _split_key(first, "split.count", default=1)
    if count <= 1:
        return (first,)
    paths = _part_paths(first, count)
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        raise ModelFileError(
            f"{first.path.parent}: {len(missing)} of {count} parts missing: {shown}"
        )
    files = tuple(first if part == first.path else read_gguf(part) for part in paths)
    _check_set(files, count)
    return files


def _choose(directory: Path) -> Path:
    """The one model in a directory: a single GGUF, or the first part of the only split set."""
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        raise ModelFileError(f"{directory} cannot be read: {error.strerror}; check it") from None
    models: dict[str, str] = {}  # by the set's name, its first part
    for name in names:
        # A vision tower lies beside K2.5's text model under this name.
        if name.endswith(".gguf") and not name.startswith("mmproj"):
            part = _PART_NAME.match(name)
            models.setdefault(part["prefix"] if part else name, name)
    if len(models) == 1:
        return directory / next(iter(models.values()))
    if models:
        listed = ", ".join(list(models.values())[:8])
        raise ModelFileError(f"{directory} holds {len(models)} models; name one of: {listed}")
    if any(name.endswith(".safetensors") for name in names):
        raise ModelFileError(f"{directory} holds safetensors; only GGUF files can be read yet")
    inside = [name for name in names if any((directory / name).glob("*.gguf"))]
    hint = (
        f"; look in {', '.join(inside[:8])}" if inside else "; give a .gguf file or its directory"
    )
    raise ModelFileError(f"{directory} holds no .gguf file{hint}")


def _part_paths(first: GgufFile, count: int) -> list[Path]:
    if count > _MAX_PARTS:
        raise ModelFileError(f"{first.path}: split.count is {count}; {_MAX_PARTS} is the limit")
    name = _PART_NAME.match(first.path.name)
    if name is None or int(name["count"]) != count:
        raise ModelFileError(
            f"{first.path} is part {_split_key(first, 'split.no', default=0) + 1} of {count}, but "
            f"its name does not end in -NNNNN-of-{count:05}.gguf; give the parts their names back"
        )
    width = len(name["number"])
    return [
        first.path.with_name(f"{name['prefix']}-{number:0{width}}-of-{name['count']}.gguf")
        for number in range(1, count + 1)
    ]


def _check_set(files: tuple[GgufFile, ...], count: int) -> None:
    owner: dict[str, Path] = {}
    for number, file in enumerate(files):
        found = _split_key(file, "split.no", default=-1), _split_key(file, "split.count", default=1)
        if found != (number, count):
            raise ModelFileError(
                f"{file.path}: its keys say part {found[0] + 1} of {found[1]}, its name says part "
                f"{number + 1} of {count}; is it from another set?"
            )
        for name in file.tensors:
            if name in owner:
                raise ModelFileError(f"{file.path}: {name!r} is also in {owner[name].name}")
            owner[name] = file.path
    expected = _split_key(files[0], "split.tensors.count", default=len(owner))
    if expected != len(owner):
        raise ModelFileError(
            f"{files[0].path}: split.tensors.count is {expected}, but the {count} parts hold "
            f"{len(owner)} tensors; download the set again"
        )


def _split_key(file: GgufFile, key: str, *, default: int) -> int:
    value = file.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value < 1 << 31:
        raise ModelFileError(f"{file.path}: the key {key} is {value!r}; a number is expected")
    return value
