"""Tests of what a cluster lacks: sums, single nodes, and the words for both."""

from __future__ import annotations

import pytest

from dist_train.rules.resources import missing, occupied

ONE_CPU = {"CPU": 1.0}


class TestACluster:
    def test_that_is_large_enough_lacks_nothing(self) -> None:
        assert missing([{"CPU": 4.0, "memory": 1e9}], [ONE_CPU] * 4) is None
        assert missing([{"CPU": 4.0}], []) is None

    def test_that_is_too_small_in_sum_says_what_is_missing_of_each_kind(self) -> None:
        nodes = [{"CPU": 2.0}, {"CPU": 2.0}]
        assert missing(nodes, [{"CPU": 2.0}] * 3) == (
            "the cluster has 4 CPUs, this run needs 6 CPUs: 2 CPUs are missing"
        )
        assert missing(nodes, [{"CPU": 1.0, "GPU": 1.0}]) == (
            "the cluster has 4 CPUs and 0 GPUs, this run needs 1 CPU and 1 GPU: 1 GPU is missing"
        )

    def test_whose_nodes_are_each_too_small_names_the_largest(self) -> None:
        assert missing([{"CPU": 2.0}, {"CPU": 3.0}], [{"CPU": 4.0}]) == (
            "4 CPUs are needed on one node, and the largest of 2 has 3 CPUs"
        )

    def test_with_the_kinds_on_different_nodes_does_not_hold_a_bundle_of_both(self) -> None:
        lack = missing([{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}], [{"CPU": 2.0, "GPU": 1.0}])
        assert lack is not None
        assert "on one node" in lack

    def test_without_nodes_says_so(self) -> None:
        assert missing([], [ONE_CPU]) == "the cluster has no nodes"


@pytest.mark.parametrize(
    ("free", "text"),
    [
        ([{"CPU": 1.0}, {"CPU": 0.5}], "1.5 CPUs free of the 3 CPUs needed"),
        ([{"GPU": 4.0}], "0 CPUs free of the 3 CPUs needed"),
    ],
)
def test_a_busy_cluster_is_described_by_what_is_free_of_what_is_needed(
    free: list[dict[str, float]], text: str
) -> None:
    assert occupied(free, [ONE_CPU] * 3) == text
