"""What stored bytes mean: one ggml format a file, listed here. Knows no files, no fast kernels.

To add a format: write its file, add it to the tuple below; tests/logic/test_quant_formats.py covers
it from then on.
"""

from __future__ import annotations

from hybrid_k2.quant.bf16 import BF16
from hybrid_k2.quant.f16 import F16
from hybrid_k2.quant.f32 import F32
from hybrid_k2.quant.format import QuantFormat
from hybrid_k2.quant.iq1_m import IQ1_M
from hybrid_k2.quant.iq1_s import IQ1_S
from hybrid_k2.quant.iq2_s import IQ2_S
from hybrid_k2.quant.iq2_xs import IQ2_XS
from hybrid_k2.quant.iq2_xxs import IQ2_XXS
from hybrid_k2.quant.iq3_s import IQ3_S
from hybrid_k2.quant.iq3_xxs import IQ3_XXS
from hybrid_k2.quant.iq4_nl import IQ4_NL
from hybrid_k2.quant.iq4_xs import IQ4_XS
from hybrid_k2.quant.mxfp4 import MXFP4
from hybrid_k2.quant.q2_k import Q2_K
from hybrid_k2.quant.q3_k import Q3_K
from hybrid_k2.quant.q4_0 import Q4_0
from hybrid_k2.quant.q4_1 import Q4_1
from hybrid_k2.quant.q4_k import Q4_K
from hybrid_k2.quant.q5_0 import Q5_0
from hybrid_k2.quant.q5_1 import Q5_1
from hybrid_k2.quant.q5_k import Q5_K
from hybrid_k2.quant.q6_k import Q6_K
from hybrid_k2.quant.q8_0 import Q8_0
from hybrid_k2.quant.stored import StoredTensor
from hybrid_k2.quant.tq1_0 import TQ1_0
from hybrid_k2.quant.tq2_0 import TQ2_0

_ALL = (
    *(F32, F16, BF16),
    *(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0),
    *(Q2_K, Q3_K, Q4_K, Q5_K, Q6_K),
    *(IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS),
    *(TQ1_0, TQ2_0, MXFP4),
)
FORMATS: dict[str, QuantFormat] = {quant.name: quant for quant in _ALL}
_BY_GGML_TYPE = {quant.ggml_type: quant for quant in _ALL}


def by_name(name: str) -> QuantFormat:
    """The format called `name` ("Q4_K"); KeyError for any other."""
    return FORMATS[name]


def by_ggml_type(ggml_type: int) -> QuantFormat | None:
    """The format with that ggml type id, or None where it is not supported."""
    return _BY_GGML_TYPE.get(ggml_type)


__all__ = ["FORMATS", "QuantFormat", "StoredTensor", "by_ggml_type", "by_name"]
