from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dist_train.config import Config
from dist_train.errors import INTERRUPTED
from dist_train.rules.resources import Bundle
from dist_train.runtime import server_launch
from dist_train.runtime.letters import Order
from dist_train.runtime.ray_cluster import Cluster, Reservation
from dist_train.runtime.server_launch import launch_server


def config_with(**parallel: Any) -> Config:
    settings = {"address": None, "worker_cpus": 2, **parallel.pop("cluster", {})}
    server = {"shards": 1, "copies": 1, **parallel.pop("server", {})}
    values = {"device": "auto", "workers": 4, "group_size": 1, "replicas": 1, **parallel}
    sections = {"cluster": SimpleNamespace(**settings), "server": SimpleNamespace(**server)}
    return cast(Config, SimpleNamespace(parallel=SimpleNamespace(**sections, **values)))


def cluster_of(gpus: int) -> Cluster:
    return cast(Cluster, SimpleNamespace(gpus=lambda: gpus))


SHARED = {"address": "head:6379"}


class TestAWorker:
    @pytest.mark.parametrize(
        ("device", "cluster", "gpus", "each"),
        [
            # On a cluster, if there is one for each.
            ("auto", SHARED, 8, 1),
            ("auto", SHARED, 4, 1),
            ("auto", SHARED, 3, 0),
            ("auto", SHARED, 0, 0),
            # On this machine, if there is any: too few are an error that says so.
            ("auto", {}, 2, 1),
            ("auto", {}, 0, 0),
            ("cuda", SHARED, 0, 1),
            ("cuda", {}, 0, 1),
            ("cpu", SHARED, 8, 0),
            ("cpu", {}, 8, 0),
        ],
    )
    def test_gets_a_gpu_of_its_own_or_the_cpu(
        self, device: str, cluster: dict[str, Any], gpus: int, each: int
    ) -> None:
        config = config_with(device=device, cluster=cluster)
        assert server_launch._gpu_each(config, cluster_of(gpus)) == each

    def test_gets_one_only_if_the_workers_of_all_replicas_do(self) -> None:
        config = config_with(cluster=SHARED, replicas=2)
        assert [server_launch._gpu_each(config, cluster_of(gpus)) for gpus in (7, 8)] == [0, 1]

    def test_asks_for_its_cpus_and_its_gpu(self) -> None:
        server, *workers = server_launch._bundles(config_with(), 1)
        assert workers == [Bundle("a worker", {"CPU": 2, "GPU": 1})] * 4
        assert server_launch._bundles(config_with(), 0)[1:] == [Bundle("a worker", {"CPU": 2})] * 4
        assert server == Bundle("the server", {"CPU": 2})

    def test_of_a_group_asks_together_with_the_others_of_its_group(self) -> None:
        _, *groups = server_launch._bundles(config_with(group_size=2), 1)
        assert groups == [Bundle("a group of 2 workers", {"CPU": 4, "GPU": 2})] * 2
        _, *groups = server_launch._bundles(config_with(group_size=4), 0)
        assert groups == [Bundle("a group of 4 workers", {"CPU": 8})]


def test_the_server_asks_for_the_coordinator_and_every_copy_of_every_shard() -> None:
    config = config_with(server={"shards": 3, "copies": 2})
    assert server_launch._bundles(config, 0)[0].needs == {"CPU": 7}


@pytest.mark.parametrize(
    ("nodes", "near"),
    [(("a", "a", "a", "a"), (0, 1, 2)), (("a", "b", "a", "b"), (1,)), (("a", "b", "b"), ()), (("a",), ())],
)
def test_those_are_near_whose_bundle_is_on_the_node_of_the_servers(
    nodes: tuple[str, ...], near: tuple[int, ...]
) -> None:
    assert server_launch._near(Reservation(nodes, (), None, ())) == near


@pytest.mark.parametrize(
    ("cluster", "nodes", "threads"), [(SHARED, ("a",), "2"), (SHARED, ("a", "b"), "2"), ({}, ("a",), "3")]
)
def test_a_worker_computes_with_the_cpus_it_asked_for_or_with_its_share_of_this_machine(
    cluster: dict[str, Any], nodes: tuple[str, ...], threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_launch, "available_cpus", lambda: 12)
    order = cast(Order, SimpleNamespace(workers=4, config=config_with(cluster=cluster)))
    reservation = Reservation(nodes, (), None, ())
    assert server_launch._environment(order, reservation)["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize("stopped_by", [KeyboardInterrupt(), SystemExit(15)])
def test_a_request_to_stop_while_ray_starts_interrupts_the_run(
    stopped_by: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: Any) -> Cluster:
        raise stopped_by

    reaper = SimpleNamespace(start=lambda: nullcontext(SimpleNamespace(variables={}, home=Path())))
    monkeypatch.setattr(server_launch, "Reaper", reaper)
    monkeypatch.setattr(server_launch, "_cluster", start)
    said: list[str] = []
    status = launch_server(cast(Config, None), Path(), "auto", {}, said.append, lambda event: None)
    assert status == INTERRUPTED
    assert said == ["interrupted while no worker was running"]
