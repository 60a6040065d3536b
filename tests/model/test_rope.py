"""RoPE and YaRN against K2's published constants: inverse frequencies and rotated vectors per
variant.
"""

import pytest
import torch

from hybrid_k2.config import YarnConfig
from hybrid_k2.model.rope import attention_factor, inverse_frequencies, rotate

INSTRUCT = YarnConfig(factor=32.0, original_max_position_embeddings=4096)
THINKING = YarnConfig(factor=64.0, original_max_position_embeddings=4096)
K25 = YarnConfig(factor=64.0, original_max_position_embeddings=4096, beta_fast=32.0)

# Dims 0, 1, 18, 19, 38, 39, 40, 41, 62, 63 of x[j] = (j + 1) / 64 at position 1000.
DIMS = [0, 1, 18, 19, 38, 39, 40, 41, 62, 63]
ROTATED = {
    INSTRUCT: "-0.017053 0.030494 -0.083537 -0.422862 -0.655231 0.576745 "
    "0.616495 0.678969 0.983498 1.000862",
    THINKING: "-0.017053 0.030494 -0.083537 -0.422862 -0.655231 0.576745 "
    "0.628662 0.667718 0.983937 1.000431",
    K25: "-0.017053 0.030494 0.354431 0.245295 0.503178 0.713285 "
    "0.628662 0.667718 0.983937 1.000431",
}
FREQUENCIES = {  # pair -> inverse frequency
    INSTRUCT: {1: 0.71311108, 9: 0.047688612, 19: 0.0016217599, 20: 3.6140468e-05},
    THINKING: {8: 0.06687403, 19: 0.0016217599, 20: 1.8070234e-05, 31: 4.3822065e-07},
    K25: {8: 0.06687403, 9: 0.043776656, 19: 0.00015837499, 20: 1.8070234e-05},
}


def turn(x: torch.Tensor, position: int, yarn: YarnConfig | None) -> torch.Tensor:
    angle = position * inverse_frequencies(64, 50000.0, yarn)
    return rotate(x[None].double(), torch.polar(torch.ones_like(angle), angle)[None])[0]


@pytest.mark.parametrize("yarn", ROTATED, ids=["instruct", "thinking", "k2.5"])
def test_a_vector_rotates_as_the_published_vectors_say(yarn):
    x = torch.arange(1, 65, dtype=torch.float64) / 64
    expected = torch.tensor([float(value) for value in ROTATED[yarn].split()])
    torch.testing.assert_close(turn(x, 1000, yarn)[DIMS].float(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("yarn", FREQUENCIES, ids=["instruct", "thinking", "k2.5"])
def test_the_betas_decide_which_pairs_are_slowed(yarn):
    frequencies = inverse_frequencies(64, 50000.0, yarn)
    for pair, expected in FREQUENCIES[yarn].items():
        assert frequencies[pair].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("yarn", "expected"), [(INSTRUCT, 9.030166), (K25, 9.067806)])
def test_scores_depend_on_the_distance_between_positions_only(yarn, expected):
    x = torch.arange(1, 65, dtype=torch.float64) / 64
    score = turn(x, 1000, yarn) @ turn(x.flip(0), 990, yarn)
    assert score.item() == pytest.approx(expected, abs=2e-6)
    moved = turn(x, 51000, yarn) @ turn(x.flip(0), 50990, yarn)
    assert moved.item() == pytest.approx(score.item(), rel=1e-9)


def test_without_yarn_frequencies_are_the_plain_powers_of_theta():
    frequencies = inverse_frequencies(8, 10000.0, None)
    torch.testing.assert_close(
        frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    )


def test_equal_mscales_leave_cos_and_sin_unscaled():
    assert attention_factor(INSTRUCT) == 1.0
    halved = YarnConfig(32.0, 4096, mscale=0.707, mscale_all_dim=0.0)
    assert attention_factor(halved) == pytest.approx(0.1 * 0.707 * torch.tensor(32.0).log() + 1)
