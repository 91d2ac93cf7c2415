"""Tests of the way from a place to a connected worker, with one worker and with threads for several."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from dist_train.config import Config, load_config
from dist_train.config.schema import Parallel
from dist_train.errors import ConfigError, Mismatch, TrainingError
from dist_train.exchange.collective import Alone
from dist_train.runtime.connect import Connection, choose_device, connect, numerics_of
from dist_train.runtime.place import Place

CPU = torch.device("cpu")


def silent(name: str, step: int) -> None: ...


def connections(workers: int) -> list[Connection]:
    store = HashStore()
    return [
        Connection(Place(rank=rank, workers=workers), CPU, store, timedelta(seconds=20), silent)
        for rank in range(workers)
    ]


def configured(**train: Any) -> Config:
    given = {"epochs": 1, "batch_size": 8, **train}
    return load_config(
        {"name": "c", "task": "digits", "train": given, "optimizer": {"name": "sgd", "lr": 1}}, ()
    )


class TestDevice:
    @pytest.fixture
    def gpus(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        def show(count: int) -> None:
            monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
            monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
            monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

        return show

    def test_without_gpus_it_is_the_cpu(self, gpus: Any) -> None:
        gpus(0)
        assert choose_device(Place(local_rank=3), Parallel()) == CPU

    def test_each_worker_of_a_host_has_its_own_gpu(self, gpus: Any) -> None:
        gpus(2)
        devices = [choose_device(Place(rank=4 + own, local_rank=own), Parallel()) for own in range(2)]
        assert devices == [torch.device("cuda", 0), torch.device("cuda", 1)]

    def test_the_cpu_can_be_asked_for(self, gpus: Any) -> None:
        gpus(2)
        assert choose_device(Place(), Parallel(device="cpu")) == CPU

    def test_a_worker_that_no_gpu_is_left_for_is_refused(self, gpus: Any) -> None:
        gpus(2)
        with pytest.raises(ConfigError, match=r"3 workers on .* but 2 GPUs"):
            choose_device(Place(local_rank=2, local_workers=3), Parallel())

    def test_under_slurm_the_only_gpu_that_a_task_sees_is_its_own(self, gpus: Any) -> None:
        gpus(1)
        place = Place(local_rank=3, local_workers=4, started_by="srun")
        assert choose_device(place, Parallel()) == torch.device("cuda", 0)


class TestFromRank0:
    def test_every_rank_gets_what_rank_0_made(self) -> None:
        first, *others = connections(3)
        assert first.from_rank_0("topic", lambda: {"path": "x"}) == {"path": "x"}
        for other in others:
            assert other.from_rank_0("topic", lambda: pytest.fail("rank 0 alone makes it")) == {"path": "x"}

    def test_when_rank_0_refuses_all_refuse_in_the_same_words(self) -> None:
        def refuse() -> Any:
            raise ConfigError(["one", "two"])

        for connection in connections(2):
            with pytest.raises(ConfigError) as refusal:
                connection.from_rank_0("topic", refuse)
            assert refusal.value.problems == ("one", "two")


class TestCollective:
    def test_a_worker_alone_needs_no_group(self) -> None:
        (connection,) = connections(1)
        with connection.collective({}) as collective:
            assert isinstance(collective, Alone)
        assert not torch.distributed.is_initialized()

    def test_workers_that_differ_never_open_one(self) -> None:
        def enter(connection: Connection) -> None:
            with connection.collective({"configuration": {"seed": str(connection.place.rank)}}):
                pytest.fail("the workers differ")

        with ThreadPoolExecutor(2) as threads:
            ends = [threads.submit(enter, connection) for connection in connections(2)]
            for end in ends:
                with pytest.raises(Mismatch, match="configuration seed is 1 instead of 0"):
                    end.result(timeout=30)
        assert not torch.distributed.is_initialized()


class TestConnect:
    def test_a_worker_alone_needs_no_address(self) -> None:
        connection = connect(Place(), Parallel(device="cpu"), silent)
        assert connection.from_rank_0("topic", lambda: 1) == 1

    def test_attempts_do_not_see_one_anothers_keys(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        place = Place(workers=2, master_port=port)
        first = connect(place, Parallel(device="cpu"), silent)
        first.store.set("key", "old")
        again = connect(
            Place(workers=2, master_port=port, attempt=1, agent_store=True), Parallel(device="cpu"), silent
        )
        assert not again.store.check(["key"])

    def test_a_store_that_cannot_be_reached_is_named(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        place = Place(rank=1, workers=2, master_port=port)
        with pytest.raises(TrainingError, match=f"rank 1 cannot reach the store at 127.0.0.1:{port}"):
            connect(place, Parallel(device="cpu", timeout_s=0.5), silent)


class TestNumerics:
    @pytest.fixture(autouse=True)
    def switches(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
        yield
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]

    @pytest.mark.parametrize("wanted", [True, False])
    def test_determinism_is_switched_as_configured(self, wanted: bool) -> None:
        numerics_of(configured(deterministic=wanted), CPU)
        assert torch.are_deterministic_algorithms_enabled() is wanted
        assert torch.backends.cudnn.benchmark is not wanted

    def test_precision_and_layout_are_passed_on(self) -> None:
        numerics = numerics_of(configured(precision="bf16", channels_last=True), CPU)
        assert (numerics.device, numerics.bf16, numerics.channels_last) == (CPU, True, True)
