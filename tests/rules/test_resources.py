"""Tests of what a cluster lacks: sums, single nodes, and the words for both."""

from __future__ import annotations

import pytest

from dist_train.rules.resources import Bundle, missing, node_by_node, occupied

ONE_CPU = Bundle("a worker", {"CPU": 1.0})
SERVER = Bundle("the server", {"CPU": 2.0})
PAIR = Bundle("a group of 2 workers", {"CPU": 2.0})
TRIO = Bundle("a group of 3 workers", {"CPU": 3.0})


class TestACluster:
    def test_that_is_large_enough_lacks_nothing(self) -> None:
        assert missing([{"CPU": 4.0, "memory": 1e9}], [ONE_CPU] * 4) is None
        assert missing([{"CPU": 4.0}], []) is None

    def test_that_is_too_small_in_sum_says_what_is_missing_of_each_kind(self) -> None:
        nodes = [{"CPU": 2.0}, {"CPU": 2.0}]
        assert missing(nodes, [PAIR] * 3) == (
            "the cluster has 4 CPUs, this run needs 6 CPUs: 2 CPUs are missing"
        )
        assert missing(nodes, [Bundle("a worker", {"CPU": 1.0, "GPU": 1.0})]) == (
            "the cluster has 4 CPUs and 0 GPUs, this run needs 1 CPU and 1 GPU: 1 GPU is missing"
        )

    def test_whose_nodes_are_each_too_small_names_the_largest(self) -> None:
        assert missing([{"CPU": 2.0}, {"CPU": 3.0}], [Bundle("a group of 4 workers", {"CPU": 4.0})]) == (
            "a group of 4 workers needs 4 CPUs on one node, and the largest of 2 has 3 CPUs"
        )

    def test_without_room_for_every_whole_group_says_so_though_it_is_large_enough_in_sum(self) -> None:
        assert missing([{"CPU": 3.0}, {"CPU": 3.0}], [PAIR] * 3) == (
            "this run needs 3 times a group of 2 workers (2 CPUs), each on one node, and the 2 nodes of the "
            "cluster have no room for all of them"
        )
        assert missing([{"CPU": 4.0}, {"CPU": 4.0}], [SERVER, TRIO, TRIO]) == (
            "this run needs the server (2 CPUs) and 2 times a group of 3 workers (3 CPUs), each on one node, "
            "and the 2 nodes of the cluster have no room for all of them"
        )

    def test_whose_server_fits_beside_the_groups_on_one_of_its_nodes_lacks_nothing(self) -> None:
        assert missing([{"CPU": 4.0}, {"CPU": 4.0}], [SERVER, *[PAIR] * 3]) is None
        assert missing([{"CPU": 3.0}, {"CPU": 3.0}, {"CPU": 2.0}], [SERVER, TRIO, TRIO]) is None

    def test_with_the_kinds_on_different_nodes_does_not_hold_a_bundle_of_both(self) -> None:
        worker = Bundle("a worker", {"CPU": 2.0, "GPU": 1.0})
        lack = missing([{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}], [worker])
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


def test_bundles_of_the_same_needs_follow_each_other_node_by_node() -> None:
    server, worker = {"CPU": 2.0}, {"CPU": 1.0}
    nodes = ["b", "a", "b", "a", "c"]
    order = node_by_node(nodes, [server, worker, worker, worker, worker])
    assert [nodes[place] for place in order] == ["b", "b", "a", "a", "c"]
    assert order == [0, 2, 1, 3, 4]
