"""The noaux_tc gate: the bias chooses, the unbiased scores weigh."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hybrid_k2.backends import registry
from hybrid_k2.backends.router import route
from hybrid_k2.errors import BadInputError
from hybrid_k2.quant import by_name
from hybrid_k2.quant.stored import StoredTensor

K2_GATE = SimpleNamespace(num_experts_per_tok=8, norm_topk_prob=True, routed_scaling_factor=2.827)
LOGITS = torch.tensor([[-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, -2.5, 0.25, -0.25]])
BIAS = torch.tensor([0.5, 0, 0, 0.4, 0, 0, 0, -0.6, 0, 0.3, 0, 0])


def test_the_published_vector_chooses_and_weighs_as_published():
    ids, weights = route(LOGITS, BIAS, K2_GATE, 8)
    order = ids[0].argsort()
    assert ids[0][order].tolist() == [0, 3, 4, 5, 6, 8, 10, 11]  # 7 loses through its bias
    expected = torch.tensor(
        [0.079646, 0.252255, 0.334077, 0.415899, 0.488460, 0.588508, 0.375621, 0.292534]
    )
    torch.testing.assert_close(weights[0][order], expected, atol=1e-6, rtol=0)
    assert ids.dtype == torch.int32


def test_weights_sum_to_the_scaling_factor_even_when_every_score_is_tiny():
    _, weights = route(torch.full((1, 12), -30.0), BIAS, K2_GATE, 8)
    torch.testing.assert_close(weights.sum(), torch.tensor(2.827))


def test_without_normalisation_weights_are_the_scaled_scores():
    gate = SimpleNamespace(norm_topk_prob=False, routed_scaling_factor=2.0)
    ids, weights = route(LOGITS, torch.zeros(12), gate, 1)
    assert ids.tolist() == [[8]]
    torch.testing.assert_close(weights, 2 * torch.sigmoid(torch.tensor([[2.0]])))


def router(**kwargs):
    names = {"weight": np.eye(12, dtype=np.float32), "e_score_correction_bias": BIAS.numpy()}
    tensors = {
        name: StoredTensor(name, by_name("F32"), values.shape, values.reshape(-1).view(np.uint8))
        for name, values in names.items()
    }
    kernels = SimpleNamespace(matrix=lambda stored: stored, linear=lambda matrix, x: x)
    context = SimpleNamespace(config=K2_GATE, kernels=kernels)
    return registry.create("router", "Router", tensors, context, kwargs)


def test_fewer_experts_are_the_best_of_them_and_share_the_whole_weight():
    all_ids, all_weights = router()(LOGITS)
    ids, weights = router(top_k=3)(LOGITS)
    assert all_ids.shape == (1, 8) and set(ids[0].tolist()) == {3, 6, 8}  # bias included
    torch.testing.assert_close(weights.sum(), all_weights.sum())


@pytest.mark.parametrize("top_k", [9, 100])
def test_more_experts_than_the_model_was_trained_with_are_refused(top_k):
    with pytest.raises(BadInputError, match=f"top_k: {top_k}, expected 0 to the model's 8"):
        router(top_k=top_k)
