"""Writes the codebooks of the IQ types, beside this file, as C++ tables: `python write_grids.py`.

The numbers come from the gguf package; tests/kernels/test_objects.py compares the files with what
this writes. An entry is one run of weights, the first in the lowest byte. IQ1_S's -1, 0 and 1 are
stored as 0, 8 and 16, because its shifts are eighths, the other grids' magnitudes as they are.
"""

from pathlib import Path

import numpy as np

from hybrid_k2.quant.codebooks import grid_values

NAMES = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
LINE = 96


def path_of(name: str) -> Path:
    """The header of a grid."""
    return Path(__file__).with_name(f"{name}.h")


def header(name: str) -> str:
    """The text of the header of a grid."""
    values = grid_values(name)
    runs = (8 * (values + 1) if name == "IQ1_S" else values).astype(np.uint8)
    entries, length = runs.shape
    values = runs.view(f"<u{length}").reshape(-1).tolist()
    numbers = [f"0x{value:0{2 * length}x}" for value in values]
    per_line = LINE // (len(numbers[0]) + 2)
    table = ",\n".join(
        "    " + ", ".join(numbers[i : i + per_line]) for i in range(0, entries, per_line)
    )
    return f"""// {name}: its grid's {entries} runs of {length} weights. Written by write_grids.py.
#pragma once

#include <stdint.h>

namespace hk2 {{
namespace {{

// clang-format off
alignas(64) constexpr uint{8 * length}_t kGrid{name}[{entries}] = {{
{table}}};
// clang-format on

}}  // namespace
}}  // namespace hk2
"""


if __name__ == "__main__":
    for name in NAMES:
        path_of(name).write_text(header(name), encoding="utf-8")
