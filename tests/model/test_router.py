"""The noaux_tc gate: the bias chooses, the unbiased scores weigh."""

from types import SimpleNamespace

import torch

from hybrid_k2.backends.router import route

K2_GATE = SimpleNamespace(num_experts_per_tok=8, norm_topk_prob=True, routed_scaling_factor=2.827)
LOGITS = torch.tensor([[-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, -2.5, 0.25, -0.25]])
BIAS = torch.tensor([0.5, 0, 0, 0.4, 0, 0, 0, -0.6, 0, 0.3, 0, 0])


def test_the_published_vector_chooses_and_weighs_as_published():
    ids, weights = route(LOGITS, BIAS, K2_GATE)
    order = ids[0].argsort()
    assert ids[0][order].tolist() == [0, 3, 4, 5, 6, 8, 10, 11]  # 7 loses through its bias
    expected = torch.tensor(
        [0.079646, 0.252255, 0.334077, 0.415899, 0.488460, 0.588508, 0.375621, 0.292534]
    )
    torch.testing.assert_close(weights[0][order], expected, atol=1e-6, rtol=0)
    assert ids.dtype == torch.int32


def test_weights_sum_to_the_scaling_factor_even_when_every_score_is_tiny():
    _, weights = route(torch.full((1, 12), -30.0), BIAS, K2_GATE)
    torch.testing.assert_close(weights.sum(), torch.tensor(2.827))


def test_without_normalisation_weights_are_the_scaled_scores():
    gate = SimpleNamespace(num_experts_per_tok=1, norm_topk_prob=False, routed_scaling_factor=2.0)
    ids, weights = route(LOGITS, torch.zeros(12), gate)
    assert ids.tolist() == [[8]]
    torch.testing.assert_close(weights, 2 * torch.sigmoid(torch.tensor([[2.0]])))
