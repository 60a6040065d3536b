"""`open_checkpoint`: a path in, a validated Kimi K2 out, with its weights mapped where they lie.

Owns the meeting of the GGUF files with Hugging Face's config and tokenizer directory. Reads headers
only; knows no backend and decodes no tokenizer.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hybrid_k2.checkpoint.bulk_read import Extent
from hybrid_k2.checkpoint.gguf_file import GgufFile, Metadata
from hybrid_k2.checkpoint.gguf_names import to_canonical, to_gguf
from hybrid_k2.checkpoint.modules import ModuleSpec, build_modules
from hybrid_k2.checkpoint.split_set import read_model_files
from hybrid_k2.config import K2Config
from hybrid_k2.errors import ModelFileError
from hybrid_k2.quant import FORMATS, StoredTensor, by_ggml_type
from hybrid_k2.quant.known_types import why_unsupported

logger = logging.getLogger(__name__)

MAX_JSON_BYTES = 16 << 20
TOKENIZER_FILE = "tiktoken.model"
_SUPPORTED = ", ".join(FORMATS)


@dataclass(eq=False)
class Checkpoint:
    """A model's files, open and checked.

    tensors: by canonical name (Hugging Face's, experts stacked); unused: the file's tensors that no
    module takes; tokenizer_dir: where tokenizer files lie, if not only in the GGUF.
    """

    config: K2Config
    metadata: Metadata
    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...]
    tokenizer_dir: Path | None
    unused: tuple[str, ...]
    _modules: tuple[ModuleSpec, ...]
    _extents: Mapping[str, Extent]

    @property
    def num_bytes(self) -> int:
        """Stored bytes of all tensors that the model uses."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def has_tokenizer(self) -> bool:
        """Whether the GGUF itself carries a vocabulary."""
        return self.metadata.length("tokenizer.ggml.tokens") > 0

    def modules(self) -> list[ModuleSpec]:
        """The model's modules, shapes checked, in the order in which a token passes them."""
        return list(self._modules)

    def locate(self, tensor: StoredTensor) -> Extent:
        """Where the bytes of one of its tensors lie, however that was reshaped."""
        return self._extents[tensor.name]

    def close(self) -> None:
        """Lets the mappings go; the system unmaps them once no tensor taken from here is alive."""
        self.metadata, self.tensors, self._modules = Metadata({}), {}, ()


def open_checkpoint(model: Path | str, *, model_path: Path | str | None = None) -> Checkpoint:
    """Opens a GGUF file, any part of a split set, or a directory that holds one model.

    model_path: a Hugging Face directory. Its config.json then wins over the GGUF's keys (which
    often lack YaRN's betas) and is checked against the tensors' shapes; its tokenizer is offered as
    `tokenizer_dir`. Takes a fraction of a second whatever the model's size. Raises ModelFileError
    naming the file and what is wrong with it.
    """
    files = read_model_files(Path(model))
    first = files[0]
    hf_dir = None if model_path is None else Path(model_path)
    try:
        config = _config(files, hf_dir)
        stored, extents, unknown = _stored_tensors(files)
        modules = build_modules(config, stored)
    except ModelFileError as error:
        raise ModelFileError(f"{first.path}: {error}") from None
    used = {tensor.name for module in modules for tensor in module.tensors.values()}
    unused = (*unknown, *(to_gguf(name) for name in stored if name not in used))
    if unused:
        logger.info("%s: not used: %s", first.path, ", ".join(unused))
    return Checkpoint(
        config=config if config.name else replace(config, name=first.path.stem),
        metadata=first.metadata,
        tensors={name: tensor for name, tensor in stored.items() if name in used},
        files=tuple(file.path for file in files),
        tokenizer_dir=_tokenizer_dir(first, hf_dir),
        unused=unused,
        _modules=tuple(modules),
        _extents=extents,
    )


def _config(files: tuple[GgufFile, ...], hf_dir: Path | None) -> K2Config:
    shapes = {name: tensor.shape for file in files for name, tensor in file.tensors.items()}
    stored = K2Config.from_gguf(files[0].metadata, shapes)
    given = None if hf_dir is None else _hf_config(hf_dir)
    if given is None:
        return stored
    for field in fields(K2Config):
        theirs, ours = getattr(given, field.name), getattr(stored, field.name)
        if theirs != ours and field.name not in ("name", "eos_token_ids"):
            logger.warning(
                "%s/config.json: %s is %s, the GGUF says %s; config.json is used",
                *(hf_dir, field.name, theirs, ours),
            )
    eos = dict.fromkeys(given.eos_token_ids + stored.eos_token_ids)
    return replace(given, name=given.name or stored.name, eos_token_ids=tuple(eos))


def _hf_config(directory: Path) -> K2Config | None:
    """The directory's config; None where it has a tokenizer only."""
    if not directory.is_dir():
        raise ModelFileError(f"{directory} is not a directory; give one with config.json")
    config = _read_json(directory / "config.json")
    if config is None:
        if _has_tokenizer(directory):
            return None
        raise ModelFileError(f"{directory} has neither config.json nor {TOKENIZER_FILE}")
    try:
        return K2Config.from_hf(config, _read_json(directory / "generation_config.json"))
    except ModelFileError as error:
        raise ModelFileError(f"{directory}: {error}") from None


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFileError(f"{path} has more than {MAX_JSON_BYTES} bytes; is it a config?")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _stored_tensors(
    files: tuple[GgufFile, ...],
) -> tuple[dict[str, StoredTensor], dict[str, Extent], tuple[str, ...]]:
    """The tensors by canonical name, where they lie, and the GGUF names without a place here."""
    stored: dict[str, StoredTensor] = {}
    extents: dict[str, Extent] = {}
    unknown: list[str] = []
    refused: dict[int, list[str]] = defaultdict(list)
    for file in files:
        for tensor in file.tensors.values():
            name, quant = to_canonical(tensor.name), by_ggml_type(tensor.ggml_type)
            if tensor.name.endswith("ffn_gate_up_exps.weight"):
                raise ModelFileError(
                    f"{tensor.name} fuses gate and up, which is not supported; "
                    "convert the model without --fuse-gate-up-exps"
                )
            if name is None:
                unknown.append(tensor.name)
            elif quant is None:
                refused[tensor.ggml_type].append(tensor.name)
            else:
                data = file.bytes_of(tensor)
                stored[name] = StoredTensor(name, quant, tensor.shape, data)
                extents[name] = Extent(file.path, tensor.offset, data.nbytes)
    for ggml_type, names in refused.items():
        more = f" and {len(names) - 1} more tensors have" if names[1:] else " has"
        raise ModelFileError(names[0] + more + " the " + why_unsupported(ggml_type, _SUPPORTED))
    return stored, extents, tuple(unknown)


def _tokenizer_dir(first: GgufFile, hf_dir: Path | None) -> Path | None:
    """The given directory, or the model's own where the GGUF carries no vocabulary."""
    if hf_dir is not None and _has_tokenizer(hf_dir):
        return hf_dir
    beside = first.path.parent
    has_own = first.metadata.length("tokenizer.ggml.tokens") > 0
    return beside if not has_own and _has_tokenizer(beside) else None


def _has_tokenizer(directory: Path) -> bool:
    return (directory / TOKENIZER_FILE).is_file()
