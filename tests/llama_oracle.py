"""llama.cpp's logits for a GGUF file, through its C interface: the oracle of several tests.

Needs llama-cpp-python; callers skip without it. llama.cpp reads no YaRN betas for this
architecture: they are passed to it as the config has them.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import numpy as np

from hybrid_k2.config import K2Config

SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaOracle:
    """A loaded file, its keys and values in float32. Use `opened`."""

    def __init__(self, path: Path, config: K2Config, context: int) -> None:
        llama_cpp.llama_log_set(SILENT, None)
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        model_params.use_extra_bufts = False  # its AMX buffers abort on heads this small
        self._vocab_size = config.vocab_size
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        assert self._model, f"llama.cpp cannot load {path}"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_outputs_max = params.n_outputs_max_per_seq = context
        params.n_threads = params.n_threads_batch = 2
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.yarn_beta_fast = config.rope_scaling.beta_fast
        params.yarn_beta_slow = config.rope_scaling.beta_slow
        self._context = llama_cpp.llama_init_from_model(self._model, params)

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """float32 [n, vocab] of a text of its own, all positions in one batch."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        batch = llama_cpp.llama_batch_init(len(token_ids), 0, 1)
        try:
            batch.n_tokens = len(token_ids)
            for i, token_id in enumerate(token_ids):
                batch.token[i], batch.pos[i], batch.logits[i] = token_id, i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            assert llama_cpp.llama_decode(self._context, batch) == 0
            flat = ctypes.cast(
                llama_cpp.llama_get_logits(self._context),
                ctypes.POINTER(ctypes.c_float * (len(token_ids) * self._vocab_size)),
            )
            return np.array(flat.contents, np.float32).reshape(len(token_ids), -1)
        finally:
            llama_cpp.llama_batch_free(batch)

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


@contextmanager
def opened(path: Path, config: K2Config, context: int = 512) -> Iterator[LlamaOracle]:
    """The file at `path`, whose config it is, for texts of at most `context` tokens."""
    oracle = LlamaOracle(path, config, context)
    try:
        yield oracle
    finally:
        oracle.close()
