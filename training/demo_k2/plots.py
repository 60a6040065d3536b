"""Two pictures of a run: the loss over tokens, and how evenly the experts are used.

`PYTHONPATH=training python -m demo_k2.plots DIR`, where DIR is what the pipeline wrote; where a run
was resumed, the earlier run's curve lies beside it as `curve-first.csv`. Needs matplotlib, which
nothing else here does.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def loss_curve(folder: Path, out: Path) -> None:
    """The training loss of the model, both slices, and of the dense baseline."""
    figure, axes = plt.subplots(figsize=(7, 4), dpi=110)
    first, second, dense = (curve(folder / f"curve{n}.csv") for n in ("-first", "", "-dense"))
    if len(first):
        axes.axvline(first[-1, 0], color="grey", linewidth=0.8, linestyle=":")
        second[:, 0] += first[-1, 0]
    both = np.concatenate([first, second])
    axes.plot(*both.T, label="384 experts, 8 active", linewidth=1)
    if len(dense):
        axes.plot(*dense.T, label="dense, same active weights", linewidth=1)
    axes.set(xlabel="million tokens", ylabel="loss, nats a token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out)


def curve(file: Path) -> np.ndarray:
    """[rows, 2]: million tokens, loss; no rows where there is no such file."""
    if not file.is_file():
        return np.empty((0, 2))
    with file.open(encoding="utf-8") as stream:
        rows = [(float(row["tokens"]) / 1e6, float(row["loss"])) for row in csv.DictReader(stream)]
    return np.array(rows)


def expert_map(folder: Path, out: Path) -> None:
    """Share of held-out tokens for each expert, as a multiple of the mean; a row is a layer."""
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    loads = np.array(figures["expert_loads"], float)
    figure, axes = plt.subplots(figsize=(9, 2.4), dpi=110)
    ratio = np.sort(loads / loads.mean(1, keepdims=True), axis=1)
    image = axes.imshow(np.log2(np.maximum(ratio, 1 / 64)), aspect="auto", vmin=-4, vmax=4,
                        cmap="coolwarm", interpolation="nearest")  # fmt: skip
    axes.set(xlabel="experts, least used first", ylabel="layer")
    axes.set_yticks(range(len(loads)), range(1, len(loads) + 1))
    figure.colorbar(image, label="log2 of share over mean")
    figure.tight_layout()
    figure.savefig(out)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    loss_curve(source, source / "loss.png")
    expert_map(source, source / "experts.png")
