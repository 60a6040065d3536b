"""Two pictures of a run: the loss over tokens, and how evenly the experts are used.

`PYTHONPATH=training python -m demo_k2.plots OUT SLICE...`: the folders that the pipeline wrote, in
order; the last one with figures and the last one with a race are drawn. Needs matplotlib, which
nothing else here does.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def loss_curve(folders: Sequence[Path], out: Path) -> None:
    """The training loss over all slices, and of the race with the dense baseline beside it."""
    figure, (slices, race) = plt.subplots(
        1, 2, figsize=(9, 3.6), dpi=110, gridspec_kw={"width_ratios": [3, 2]}
    )
    seen = 0.0
    for number, folder in enumerate(folders, 1):
        tokens, loss = curve(folder / "curve.csv").T
        slices.plot(tokens + seen, loss, linewidth=1, label=f"slice {number}")
        seen += tokens[-1]
    for name, label in (("experts", "384 experts, 8 active"), ("dense", "dense, as many active")):
        file = _last(folders, f"curve-race-{name}.csv")
        race.plot(*curve(file).T, linewidth=1, label=label)
    race.legend()
    slices.legend()
    for axes in (slices, race):
        axes.set(xlabel="million tokens", ylabel="loss, nats a token", yscale="log")
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out)


def curve(file: Path) -> np.ndarray:
    """[rows, 2]: million tokens, loss."""
    with file.open(encoding="utf-8") as stream:
        rows = [(float(row["tokens"]) / 1e6, float(row["loss"])) for row in csv.DictReader(stream)]
    return np.array(rows)


def _last(folders: Sequence[Path], name: str) -> Path:
    return [folder / name for folder in folders if (folder / name).is_file()][-1]


def expert_map(folders: Sequence[Path], out: Path) -> None:
    """Share of held-out tokens for each expert, as a multiple of the mean; a row is a layer."""
    figures = json.loads(_last(folders, "figures.json").read_text(encoding="utf-8"))
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
    pictures, *slices = map(Path, sys.argv[1:])
    loss_curve(slices, pictures / "loss.png")
    expert_map(slices, pictures / "experts.png")
