"""Triton kernels on whatever there is: the GPU, or Triton's interpreter on the CPU.

The same tests run on both; on a GPU they carry the marker `gpu`. Owns what the interpreter
lacks: numpy has no bfloat16, so its dot would multiply bit patterns; since numpy 2.4 an array of
one element is no index, so a loop up to a loaded number would not start; and each call of a
function in a kernel would patch the whole language again, 20 ms a time.
"""

import numpy as np
import pytest
import torch

ON_GPU = torch.cuda.is_available()  # where it is not, ../conftest.py asks for the interpreter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ON_GPU and "tests/triton/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tensors of a test lie."""
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(scope="session")
def bfloat16_step() -> float:
    """The largest relative error of one rounding to bfloat16: the interpreter cuts off, GPUs round
    to nearest.
    """
    return 2.0**-8 if ON_GPU else 2.0**-7


@pytest.fixture(scope="session", autouse=True)
def _interpreter_multiplies_bfloat16() -> None:
    if ON_GPU:
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    import triton.language as tl

    def widened(operand):
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = operand.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    dot = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot
    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor, *scope):
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patch_tensor_and_index

    patched: set[str] = set()

    def call(self, *args, **kwargs):
        if self.fn.__module__ not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(self.fn.__module__)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    # Every integer operation would be done again in 64 bits.
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
