"""llama.cpp through llama-cpp-python's C interface: one model, one sequence, tokens given by us.

Knows nothing of hybrid-k2. llama.cpp reads no YaRN betas for K2's architecture; K2's own are
passed.
"""

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

_SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaPeer:
    """A model mapped from its file, on the CPU."""

    def __init__(self, path: Path, num_threads: int, context: int, repack: bool = False) -> None:
        """repack: let llama.cpp copy weights into layouts of its own, which takes their size in
        memory again, and aborts on K2's 3-D tensors where the CPU has AMX (0.3.36).
        """
        llama_cpp.llama_log_set(_SILENT, None)
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        model_params.use_extra_bufts = repack
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = num_threads
        params.yarn_beta_fast = params.yarn_beta_slow = 1.0
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(1, 0, 1)
        self._position = 0

    def reset(self) -> None:
        """Forgets the sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._position = 0

    def decode(self, token_id: int) -> np.ndarray:
        """Appends one token and returns the logits after it, float32 [vocab]."""
        batch = self._batch
        batch.n_tokens = 1
        batch.token[0], batch.pos[0], batch.logits[0] = token_id, self._position, 1
        batch.n_seq_id[0], batch.seq_id[0][0] = 1, 0
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise RuntimeError(f"llama.cpp cannot decode token {token_id} at {self._position}")
        self._position += 1
        logits = llama_cpp.llama_get_logits_ith(self._context, 0)
        row = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self._vocab_size))
        return np.array(row.contents, np.float32)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)
