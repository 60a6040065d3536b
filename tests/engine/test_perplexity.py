"""`hybrid-k2 perplexity` on engines whose probabilities are known, and on the demo model."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from hybrid_k2.cli.divergence import Compared, Recorded
from hybrid_k2.cli.perplexity import command, measure
from hybrid_k2.errors import BadInputError

VOCAB_SIZE = 16


class KnownEngine:
    """Gives every next token the probability that `probability(position, token)` says."""

    def __init__(self, probability):
        self.probability = probability
        self.windows = []

    def logits(self, token_ids):
        self.windows.append(list(token_ids))
        rows = np.zeros((len(token_ids), VOCAB_SIZE), np.float32)
        for row in range(len(token_ids) - 1):
            p = self.probability(row, token_ids[row + 1])
            # The odds of the next token against the others, each of which has a logit of 0.
            rows[row, token_ids[row + 1]] = math.log(p / (1 - p) * (VOCAB_SIZE - 1))
        return rows + 1000  # a softmax does not change by it, a careless one overflows


TEXT = [token_id % VOCAB_SIZE for token_id in range(100)]


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity():
    result = measure(KnownEngine(lambda row, token: 1 / VOCAB_SIZE), TEXT, 10)
    assert result.perplexity == pytest.approx(VOCAB_SIZE, rel=1e-4)
    assert result.standard_error == pytest.approx(0, abs=1e-2)


def test_windows_do_not_overlap_and_their_second_half_counts():
    # As llama.cpp: of 10 tokens, those at 6 to 9, predicted from rows 5 to 8.
    engine = KnownEngine(lambda row, token: 0.5 if 5 <= row <= 8 else 0.01)
    result = measure(engine, TEXT[:95], 10)
    assert engine.windows == [TEXT[start : start + 10] for start in range(0, 90, 10)]
    assert result.perplexity == pytest.approx(2, rel=1e-4)
    assert (result.num_windows, result.num_predictions) == (9, 9 * 4)


def test_an_odd_window_counts_what_llama_cpp_counts():
    result = measure(KnownEngine(lambda row, token: 0.5), TEXT, 7)
    assert result.num_predictions == 14 * (7 - 7 // 2 - 1)


def test_the_error_is_the_means_carried_through_the_exponential():
    def probability(row, token):
        return 0.5 if token % 2 else 0.25

    losses = [
        -math.log(probability(0, TEXT[s + i])) for s in range(0, 100, 10) for i in range(6, 10)
    ]
    mean = sum(losses) / len(losses)
    variance = sum((loss - mean) ** 2 for loss in losses) / len(losses)
    result = measure(KnownEngine(probability), TEXT, 10)
    assert result.perplexity == pytest.approx(math.exp(mean), rel=1e-4)
    expected = math.exp(mean) * math.sqrt(variance / (len(losses) - 1))
    assert result.standard_error == pytest.approx(expected, rel=1e-3)


def test_no_more_windows_are_read_than_asked_for():
    engine = KnownEngine(lambda row, token: 0.5)
    assert measure(engine, TEXT, 10, max_windows=3).num_windows == 3
    assert len(engine.windows) == 3


def test_a_text_shorter_than_a_window_is_an_error_with_the_numbers():
    with pytest.raises(BadInputError, match=r"5 tokens.*10"):
        measure(KnownEngine(lambda row, token: 0.5), TEXT[:5], 10)


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), (b"a\xff", "at 1 is")])
def test_a_text_that_cannot_be_read_is_an_error(tmp_path, content, message):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    result = CliRunner().invoke(command, ["--text", str(file)])
    assert isinstance(result.exception, BadInputError)
    assert message in str(result.exception)


def test_the_command_measures_the_demo_model(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    options = ["--text", str(file), "--context", "16", "--chunks", "2", "--json"]
    result = CliRunner().invoke(command, options, catch_exceptions=False)
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert (figures["num_windows"], figures["num_predictions"]) == (2, 2 * 7)
    assert 1 < figures["perplexity"] < math.inf


def test_predictions_under_other_rules_are_compared_with_the_first(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    rules = tmp_path / "three.yaml"
    rules.write_text(
        "rules:\n  - match: {class: Router}\n    replace: {backend: router, kwargs: {top_k: 3}}\n"
    )
    options = ["--text", str(file), "--context", "16", "--chunks", "2", "--rules", "cpu"]

    def against(other):
        result = CliRunner().invoke(
            command, [*options, "--against", str(other), "--json"], catch_exceptions=False
        )
        return json.loads(result.stdout)

    same, fewer = against("cpu"), against(rules)
    assert abs(same["against"]["kl_mean"]) < 1e-9 and same["against"]["same_top"] == 1
    assert same["against"]["perplexity"] == same["perplexity"] == fewer["perplexity"]
    assert fewer["against"]["kl_99"] >= fewer["against"]["kl_mean"] > 1e-6
    assert fewer["tokens_s"] > 0 and fewer["other_tokens_s"] > 0
    text = CliRunner().invoke(command, [*options, "--against", str(rules)]).stdout
    assert f"KL(cpu || {rules}) mean" in text and "tokens/s" in text


def test_the_divergence_is_that_of_the_definition():
    first = Recorded(KnownEngine(lambda row, token: 0.5))
    first.logits(TEXT[:10])
    second = Compared(KnownEngine(lambda row, token: 0.25), first)
    second.logits(TEXT[:10])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert second.divergence.kl_mean == pytest.approx(expected, rel=1e-3)
    assert second.divergence.kl_99 == pytest.approx(expected, rel=1e-3)
