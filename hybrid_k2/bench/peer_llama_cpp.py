"""llama.cpp's routed experts on the CPU: the graph of its MoE layers over our own weights' bytes.

Owns the ctypes calls into the ggml libraries that llama-cpp-python carries. Weights stay where they
lie, in plain CPU buffers: the layouts of ggml's own that llama.cpp may copy weights into are not
used, since in 0.3.36 they abort on 3-D tensors where the CPU has AMX. Knows no timing.
"""

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hybrid_k2.bench.layer import Inputs, Layer
from hybrid_k2.errors import BadInputError
from hybrid_k2.quant.stored import StoredTensor

F32, I32 = 0, 26  # enum ggml_type
SUCCESS = 0  # enum ggml_status
CONTEXT_BYTES = 1 << 20  # of tensors' and the graph's descriptions, no data


class _InitParams(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


def open_engines(layer: Layer, num_threads: int, max_tokens: int) -> list["LlamaCpp"]:
    """One engine; as many threads as ours. Raises BadInputError without its libraries."""
    return [LlamaCpp(layer, num_threads, _load_ggml())]


class LlamaCpp:
    """MUL_MAT_ID of gate and up, SwiGLU, MUL_MAT_ID of down, and the weighted sum as views."""

    tier = "llama.cpp"

    def __init__(self, layer: Layer, num_threads: int, ggml: Any) -> None:
        self.quant, self.threads = layer.quant, num_threads
        self.expert_bytes = sum(
            tensor.num_bytes // layer.shape.num_experts
            for tensor in (layer.gate, layer.up, layer.down)
        )
        self._ggml = ggml
        self._backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self._backend, num_threads)
        self._allocator = ggml.ggml_gallocr_new(ggml.ggml_backend_cpu_buffer_type())
        self._weights_context = self._context()
        self._weights = [self._stored(tensor) for tensor in (layer.gate, layer.up, layer.down)]
        self._graph_context: int | None = None
        self._shape: tuple[int, int] | None = None  # tokens and experts of the graph there is

    def prepare(self, inputs: Inputs) -> None:
        if self._shape != tuple(inputs.ids.shape):
            self._build(*inputs.x.shape, inputs.ids.shape[1])
        for tensor, values in zip(
            self._inputs, (inputs.x, inputs.ids, inputs.weights), strict=True
        ):
            values = values.contiguous()
            self._ggml.ggml_backend_tensor_set(tensor, values.data_ptr(), 0, values.nbytes)

    def compute(self) -> None:
        status = self._ggml.ggml_backend_graph_compute(self._backend, self._graph)
        if status != SUCCESS:
            raise RuntimeError(f"ggml_backend_graph_compute returned {status}")

    def output(self) -> torch.Tensor:
        y = torch.empty(self._output_shape)
        self._ggml.ggml_backend_tensor_get(self._output, y.data_ptr(), 0, y.nbytes)
        return y

    def _context(self) -> int:
        return self._ggml.ggml_init(_InitParams(CONTEXT_BYTES, None, True))

    def _stored(self, tensor: StoredTensor) -> int:
        """A ggml tensor over the bytes of ours, which the layer's owner keeps."""
        ggml = self._ggml
        experts, rows, cols = tensor.shape
        out = ggml.ggml_new_tensor_3d(
            self._weights_context, tensor.quant.ggml_type, cols, rows, experts
        )
        address = tensor.data.ctypes.data
        buffer = ggml.ggml_backend_cpu_buffer_from_ptr(address, tensor.num_bytes)
        if ggml.ggml_backend_tensor_alloc(buffer, out, address) != SUCCESS:
            raise BadInputError(f"--vs llama.cpp: no room for a {tensor.quant.name} tensor")
        return out

    def _build(self, num_tokens: int, hidden_size: int, top_k: int) -> None:
        """As llm_graph_context::build_moe_ffn does, without the router."""
        ggml = self._ggml
        if self._graph_context is not None:
            ggml.ggml_free(self._graph_context)
        context = self._graph_context = self._context()
        gate, up, down = self._weights
        x = ggml.ggml_new_tensor_3d(context, F32, hidden_size, 1, num_tokens)
        ids = ggml.ggml_new_tensor_3d(context, I32, top_k, num_tokens, 1)
        weights = ggml.ggml_new_tensor_3d(context, F32, 1, top_k, num_tokens)
        self._inputs = (x, ids, weights)
        for tensor in self._inputs:
            ggml.ggml_set_input(tensor)
        middle = ggml.ggml_swiglu_split(
            context,
            ggml.ggml_mul_mat_id(context, gate, x, ids),
            ggml.ggml_mul_mat_id(context, up, x, ids),
        )
        parts = ggml.ggml_mul(context, ggml.ggml_mul_mat_id(context, down, middle, ids), weights)
        row_bytes = 4 * hidden_size
        views = [
            ggml.ggml_view_2d(
                context, parts, hidden_size, num_tokens, top_k * row_bytes, k * row_bytes
            )
            for k in range(top_k)
        ]
        total = views[0]
        for view in views[1:]:
            total = ggml.ggml_add(context, total, view)
        self._output, self._output_shape = total, (num_tokens, hidden_size)
        ggml.ggml_set_output(total)
        self._graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(self._graph, total)
        if not ggml.ggml_gallocr_alloc_graph(self._allocator, self._graph):
            raise BadInputError(f"--vs llama.cpp: no room for {num_tokens} tokens")
        self._shape = (num_tokens, top_k)


class _Ggml:
    """The functions used here, with their argument types, from whichever library has them."""

    _POINTER, _INT, _LONG, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
    _FUNCTIONS = {  # noqa: RUF012
        # name: (result, arguments)
        "ggml_init": (_POINTER, [_InitParams]),
        "ggml_free": (None, [_POINTER]),
        "ggml_new_tensor_3d": (_POINTER, [_POINTER, _INT, _LONG, _LONG, _LONG]),
        "ggml_set_input": (None, [_POINTER]),
        "ggml_set_output": (None, [_POINTER]),
        "ggml_mul_mat_id": (_POINTER, [_POINTER] * 4),
        "ggml_swiglu_split": (_POINTER, [_POINTER] * 3),
        "ggml_mul": (_POINTER, [_POINTER] * 3),
        "ggml_add": (_POINTER, [_POINTER] * 3),
        "ggml_view_2d": (_POINTER, [_POINTER, _POINTER, _LONG, _LONG, _SIZE, _SIZE]),
        "ggml_new_graph": (_POINTER, [_POINTER]),
        "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
        "ggml_gallocr_new": (_POINTER, [_POINTER]),
        "ggml_gallocr_alloc_graph": (ctypes.c_bool, [_POINTER, _POINTER]),
        "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
        "ggml_backend_tensor_get": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
        "ggml_backend_tensor_alloc": (_INT, [_POINTER] * 3),
        "ggml_backend_graph_compute": (_INT, [_POINTER, _POINTER]),
        "ggml_backend_cpu_buffer_from_ptr": (_POINTER, [_POINTER, _SIZE]),
        "ggml_backend_cpu_buffer_type": (_POINTER, []),
        "ggml_backend_cpu_init": (_POINTER, []),
        "ggml_backend_cpu_set_n_threads": (None, [_POINTER, _INT]),
    }

    def __init__(self, libraries: list[ctypes.CDLL]) -> None:
        for name, (result, arguments) in self._FUNCTIONS.items():
            function = next(getattr(lib, name) for lib in libraries if hasattr(lib, name))
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


def _load_ggml() -> _Ggml:
    """The libraries beside the llama_cpp package, which need not be imported for it."""
    spec = find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "lib"
    try:
        # The base first: the other names it as a dependency.
        names = ("libggml-base.so", "libggml-cpu.so")
        return _Ggml([ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL) for name in names])
    except (OSError, StopIteration) as error:
        raise BadInputError(
            f"--vs llama.cpp: cannot use the libraries in {folder} ({error}); "
            "pip install --upgrade llama-cpp-python"
        ) from error
