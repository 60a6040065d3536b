"""Routing statistics outlive the process; a file that is wrong is a warning and nothing else."""

import json

import numpy as np
import pytest

from hybrid_k2.backends.routing_statistics import RoutingStatistics

EXPERTS = 4


def test_what_was_recorded_is_there_after_a_restart(tmp_path):
    path = tmp_path / "routing.json"
    first = RoutingStatistics(EXPERTS, path, "model")
    first.record(3, np.array([8, 0, 1, 3]))
    first.record(3, np.array([0, 5, 0, 0]))
    first.record(60, np.array([1, 1, 1, 1]))
    first.save()
    again = RoutingStatistics(EXPERTS, path, "model")
    assert again.counts(3).tolist() == [4, 5, 0.5, 1.5]
    assert again.counts(60).tolist() == [1] * 4 and not again.counts(5).any()
    assert [entry.name for entry in tmp_path.iterdir()] == ["routing.json"]


def test_counts_that_somebody_holds_follow_what_is_recorded():
    statistics = RoutingStatistics(EXPERTS)
    held = statistics.counts(1)
    statistics.record(1, np.array([0, 2, 0, 0]))
    assert held.tolist() == [0, 2, 0, 0]
    statistics.save()  # nowhere


def test_what_was_used_long_ago_counts_less():
    statistics = RoutingStatistics(EXPERTS)
    statistics.record(1, np.array([100, 0, 0, 0]))
    for _ in range(8):
        statistics.record(1, np.array([0, 1, 0, 0]))
    assert statistics.counts(1).argmax() == 1


def test_a_start_without_a_prompt_leaves_the_file_alone(tmp_path):
    path = tmp_path / "routing.json"
    RoutingStatistics(EXPERTS, path, "model").save()
    assert not path.exists()


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    statistics = RoutingStatistics(EXPERTS, tmp_path / "absent" / "routing.json", "model")
    statistics.record(1, np.ones(EXPERTS))
    statistics.save()
    assert "routing statistics are lost" in caplog.text


GOOD = {"format": 1, "identity": "model", "counts": {"1": [9, 1, 0.5, 0]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"[]",
        b"null",
        json.dumps(GOOD)[:-3].encode(),
        json.dumps(GOOD | {"format": 2}),
        json.dumps(GOOD | {"identity": "another model"}),
        json.dumps(GOOD | {"identity": ["model"]}),
        json.dumps(GOOD | {"counts": [[9, 1, 0, 0]]}),
        json.dumps(GOOD | {"counts": {"1": [9, 1, 0]}}),
        json.dumps(GOOD | {"counts": {"1": [9, 1, 0, -1]}}),
        json.dumps(GOOD | {"counts": {"1": [9, 1, 0, 1e300]}}),
        json.dumps(GOOD | {"counts": {"1": [9, 1, 0, float("nan")]}}),
        json.dumps(GOOD | {"counts": {"1": [9, 1, 0, float("inf")]}}),
        json.dumps(GOOD | {"counts": {"1": [9, 1, 0, True]}}),
        json.dumps(GOOD | {"counts": {"1": [9, 1, 0, "4"]}}),
        json.dumps(GOOD | {"counts": {"1": {"0": 1}}}),
        json.dumps(GOOD | {"counts": {"../1": [9, 1, 0, 0]}}),
        json.dumps(GOOD | {"counts": {"1" * 5000: [9, 1, 0, 0]}}),
        json.dumps(GOOD) + " " * (16 << 20),
    ],
)
def test_a_file_that_is_damaged_or_foreign_is_a_warning_and_counting_starts_anew(
    content, tmp_path, caplog
):
    path = tmp_path / "routing.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    statistics = RoutingStatistics(EXPERTS, path, "model")
    assert not statistics.counts(1).any()
    assert "routing statistics start anew" in caplog.text and len(caplog.records) == 1
    statistics.record(1, np.ones(EXPERTS))
    statistics.save()
    assert RoutingStatistics(EXPERTS, path, "model").counts(1).tolist() == [1] * 4


def test_a_path_that_is_no_file_is_a_warning(tmp_path, caplog):
    assert not RoutingStatistics(EXPERTS, tmp_path, "model").counts(1).any()
    assert "start anew" in caplog.text


def test_a_good_file_is_read(tmp_path):
    path = tmp_path / "routing.json"
    path.write_text(json.dumps(GOOD))
    assert RoutingStatistics(EXPERTS, path, "model").counts(1).tolist() == [9, 1, 0.5, 0]
