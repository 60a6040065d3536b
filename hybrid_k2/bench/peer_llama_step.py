"""llama.cpp's whole steps, of a model with our synthetic model's shapes, beside ours.

Writes a GGUF of random blocks for each depth, loads it as llama.cpp's users do who keep the experts
in RAM (`-ot exps=CPU`, flash attention, no mmap), and times its decode and its prompts through the
C interface of llama-cpp-python. On a GPU that needs a build of it with CUDA. Runs in a process of
its own, so that neither program's memory is in the other's way. Knows nothing of our backends.
"""

import ctypes
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_k2.bench.synthetic_model import EXTRAPOLATED_LAYERS, K2, Placement
from hybrid_k2.checkpoint.gguf_names import to_gguf
from hybrid_k2.checkpoint.gguf_writer import add_k2_metadata, tensor_shapes
from hybrid_k2.config import K2Config
from hybrid_k2.errors import BadInputError
from hybrid_k2.quant import QuantFormat, by_name
from hybrid_k2.quant.random_blocks import random_blocks

_ALIGNMENT = 32  # of tensors in a GGUF
_PATTERN_BYTES = 32 << 20  # of random bits, which a large tensor repeats
_MIN_RUNS = 3
_ALL_LAYERS = 1 << 20


@dataclass(frozen=True, slots=True)
class PeerStep:
    """What StepResult says of ours. layer_ms: of a layer of experts, by the difference of two
    depths, in both of which the last layer's experts see the last token only. tokens_s:
    extrapolated to 61 layers, the last of which is as cheap.
    """

    phase: str
    context: int
    tokens: int
    runs: int
    layer_ms: float
    tokens_s: float


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """What to measure; as measure_steps has it. Decode is of one sequence."""

    placement: Placement
    num_moe_layers: int
    contexts: Sequence[int]
    prompts: Sequence[int]
    num_threads: int
    seconds: float
    config: K2Config = K2


def measure_llama_cpp(request: PeerRequest) -> list[PeerStep]:
    """A row for each context and each prompt. Raises BadInputError where llama.cpp is absent, was
    built without CUDA for a model on a GPU, or cannot load the model.
    """
    if find_spec("llama_cpp") is None:
        raise BadInputError("--vs llama.cpp: not installed; pip install llama-cpp-python")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, request).result()


def _measure(request: PeerRequest) -> list[PeerStep]:
    import llama_cpp

    on_gpu = request.placement.device != "cpu"
    if on_gpu and not llama_cpp.llama_supports_gpu_offload():
        raise BadInputError(
            "--vs llama.cpp: the installed llama-cpp-python was built without CUDA; reinstall it "
            "with CMAKE_ARGS=-DGGML_CUDA=on, or compare on --device cpu"
        )
    dense = request.config.first_k_dense_replace
    times = []  # by depth, the rows' seconds
    for num_layers in (dense + 1, dense + request.num_moe_layers):
        config = replace(request.config, num_hidden_layers=num_layers)
        with _opened(config, request, on_gpu) as peer:
            times.append([_timed(step, request.seconds) for step in peer.steps(request)])
    shapes = [("decode", context, 1) for context in request.contexts]
    shapes += [("prefill", 0, tokens) for tokens in request.prompts]
    rows = []
    for shape, (shallow_s, _), (deep_s, runs) in zip(shapes, *times, strict=True):
        layer_s = (deep_s - shallow_s) / (request.num_moe_layers - 1)
        whole_s = shallow_s + (EXTRAPOLATED_LAYERS - dense - 1) * layer_s
        rows.append(PeerStep(*shape, runs, 1e3 * layer_s, shape[2] / whole_s))
    return rows


def _timed(step: Callable[[], float], seconds: float) -> tuple[float, int]:
    """Median seconds, and of how many runs."""
    step()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _MIN_RUNS or time.perf_counter() - began < seconds:
        times.append(step())
        if time.perf_counter() - began > 2 * seconds:
            break
    return statistics.median(times), len(times)


@contextmanager
def _opened(config: K2Config, request: PeerRequest, on_gpu: bool) -> Iterator["_LlamaCpp"]:
    """A model of this depth, its file gone once it is loaded."""
    with tempfile.TemporaryDirectory(prefix="hybrid-k2-bench-") as folder:
        path = Path(folder) / "synthetic.gguf"
        sizes = (
            form.num_bytes(prod(shape)) for _, shape, form in _tensors(config, request.placement)
        )
        needed, free = sum(sizes), shutil.disk_usage(folder).free
        if needed > free:
            raise BadInputError(
                f"--vs llama.cpp: its file takes {needed / 1e9:.1f} GB and {Path(folder).parent} "
                f"has {free / 1e9:.1f}; set TMPDIR to a larger disk, or give fewer --layers"
            )
        _write(path, config, request.placement)
        peer = _LlamaCpp(path, config, request, on_gpu)
    try:
        yield peer
    finally:
        peer.close()


class _LlamaCpp:
    def __init__(self, path: Path, config: K2Config, request: PeerRequest, on_gpu: bool) -> None:
        import llama_cpp

        self._llama, self._vocab_size = llama_cpp, config.vocab_size
        self._rng = np.random.default_rng(1)
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = _ALL_LAYERS if on_gpu else 0
        params.use_extra_bufts = False  # layouts of its own, which abort on 3-D tensors with AMX
        if hasattr(params, "load_mode"):
            params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        else:
            params.use_mmap = False
        self._overrides = _experts_on_cpu(llama_cpp)
        if on_gpu:
            params.tensor_buft_overrides = ctypes.cast(self._overrides, ctypes.c_void_p)
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise BadInputError("--vs llama.cpp: it cannot load the synthetic model")
        most = max([1, *request.prompts])
        batch = max([512, *request.prompts])
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = max([most, *(context + 1 for context in request.contexts)]) + 64
        options.n_batch = options.n_ubatch = batch
        options.n_threads = options.n_threads_batch = request.num_threads
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if config.rope_scaling is not None:
            options.yarn_beta_fast = config.rope_scaling.beta_fast
            options.yarn_beta_slow = config.rope_scaling.beta_slow
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise BadInputError("--vs llama.cpp: no memory for its context")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(batch, 0, 1)
        self._batch_tokens = batch

    def steps(self, request: PeerRequest) -> Iterator[Callable[[], float]]:
        """For each row a step, which returns its seconds."""
        for context in request.contexts:
            self._clear(0)
            for first in range(0, context, self._batch_tokens):
                self._run(min(self._batch_tokens, context - first), first)
            yield lambda start=context: self._step(1, start)
        for tokens in request.prompts:
            yield lambda num_tokens=tokens: self._step(num_tokens, 0)

    def close(self) -> None:
        self._llama.llama_batch_free(self._batch)
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)

    def _step(self, num_tokens: int, start: int) -> float:
        """Forgets what comes after `start` and appends random tokens there."""
        self._clear(start)
        began = time.perf_counter()
        self._run(num_tokens, start)
        return time.perf_counter() - began

    def _clear(self, start: int) -> None:
        self._llama.llama_memory_seq_rm(self._memory, 0, start, -1)

    def _run(self, num_tokens: int, start: int) -> None:
        batch = self._batch
        batch.n_tokens = num_tokens
        token_ids = self._rng.integers(0, self._vocab_size, num_tokens).tolist()
        for i, token_id in enumerate(token_ids):
            batch.token[i], batch.pos[i] = token_id, start + i
            batch.logits[i] = i + 1 == num_tokens
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if self._llama.llama_decode(self._context, batch) != 0:
            raise BadInputError(f"--vs llama.cpp: it cannot decode {num_tokens} tokens")
        self._llama.llama_synchronize(self._context)


class _Override(ctypes.Structure):
    """struct llama_model_tensor_buft_override."""

    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


def _experts_on_cpu(llama_cpp: Any) -> Any:
    """`-ot exps=CPU`: a list of one, ended by nothing."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    base = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
    base.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    return (_Override * 2)(_Override(b"exps", base.ggml_backend_cpu_buffer_type()), _Override())


def _tensors(
    config: K2Config, placement: Placement
) -> Iterator[tuple[str, tuple[int, ...], QuantFormat]]:
    for name, shape in tensor_shapes(config, latent_heads=True):
        yield name, shape, by_name(placement.quant(name))


def _write(path: Path, config: K2Config, placement: Placement) -> None:
    """A GGUF without a vocabulary, weights such that they keep the variance of their input."""
    import gguf

    writer = gguf.GGUFWriter(path, arch="deepseek2")
    add_k2_metadata(writer, config)
    writer.add_tokenizer_model("no_vocab")
    tensors = list(_tensors(config, placement))
    for name, shape, form in tensors:
        ggml_type, num_bytes = (
            gguf.GGMLQuantizationType(form.ggml_type),
            form.num_bytes(prod(shape)),
        )
        writer.add_tensor_info(to_gguf(name), shape, np.dtype(np.float32), num_bytes, ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    rng = np.random.Generator(np.random.SFC64(1))
    with path.open("ab") as file:
        file.write(bytes(-file.tell() % _ALIGNMENT))
        for name, shape, form in tensors:
            std = placement.spread(name, shape)
            num_blocks = prod(shape) // form.block_size
            in_pattern = min(num_blocks, _PATTERN_BYTES // form.block_bytes)
            pattern = random_blocks(rng, form, in_pattern, std).reshape(-1).view(np.uint8)
            if "norm" in name:
                pattern.view(np.float32)[:] = 1.0
            left = form.num_bytes(prod(shape))
            while left:
                left -= file.write(pattern[:left].data)
            file.write(bytes(-file.tell() % _ALIGNMENT))
