"""F16: IEEE half precision."""

from __future__ import annotations

from functools import partial

from hybrid_k2.quant.blocks import encode_with_gguf, half
from hybrid_k2.quant.format import QuantFormat

F16 = QuantFormat("F16", 1, 1, 2, half, partial(encode_with_gguf, name="F16"))
