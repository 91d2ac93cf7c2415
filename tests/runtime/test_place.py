"""Tests of where a process finds itself: a table of environments, and what is missing in broken ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dist_train.errors import ConfigError
from dist_train.runtime.place import (
    PORTS,
    Place,
    cluster_token_given,
    find_place,
    set_unless_given,
    set_variables,
)

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
LAUNCHER = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "40001",
    "DIST_TRAIN_LAUNCHER_PID": "77",
    "DIST_TRAIN_ATTEMPT": "3",
    "DIST_TRAIN_LISTEN_FD": "9",
    "DIST_TRAIN_PULSE": "/dev/fd/8",
}
SRUN = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
BATCH_STEP = {"SLURM_JOB_ID": "1234", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}


def without(environment: dict[str, str], *names: str, **changes: str) -> dict[str, str]:
    return {name: text for name, text in environment.items() if name not in names} | changes


def found(environment: dict[str, str]) -> Place:
    place = find_place(environment)
    assert place is not None
    return place


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for Slurm's scontrol, alone on the PATH."""
    script = tmp_path / "scontrol"
    script.write_text(
        '#!/bin/sh\n[ "$1 $2 $3" = "show hostnames node[07-08]" ] && echo node07 && echo node08\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    return script


class TestNobodysWorker:
    @pytest.mark.parametrize(
        "environment",
        [
            {},
            {"RANK": "0"},
            {"WORLD_SIZE": "2"},
            BATCH_STEP,
            {**BATCH_STEP, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        ],
        ids=["nothing set", "rank alone", "world size alone", "sbatch script", "srun of one task"],
    )
    def test_a_process_that_nobody_started_as_a_worker_has_no_place(
        self, environment: dict[str, str]
    ) -> None:
        assert find_place(environment) is None

    def test_without_an_argument_the_process_environment_counts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, text in TORCHRUN.items():
            monkeypatch.setenv(name, text)
        assert find_place() == find_place(TORCHRUN)


class TestTorchrun:
    def test_gives_the_whole_place(self) -> None:
        assert find_place(TORCHRUN) == Place(
            rank=5,
            workers=8,
            local_rank=1,
            local_workers=4,
            master_address="node0",
            master_port=29500,
            attempt=2,
            started_by="torchrun",
            agent_store=True,
        )

    def test_is_not_the_launcher(self) -> None:
        assert not found(TORCHRUN).launched

    def test_wins_over_slurm_around_it(self) -> None:
        assert found({**SRUN, **TORCHRUN}).started_by == "torchrun"

    def test_without_an_agent_store_rank_0_serves_it(self) -> None:
        assert not found(without(TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE")).agent_store

    @pytest.mark.parametrize(
        ("environment", "problem"),
        [
            (without(TORCHRUN, "MASTER_PORT"), "MASTER_PORT is not set"),
            (without(TORCHRUN, RANK=""), "RANK is not set"),
            (without(TORCHRUN, RANK="five"), "RANK must be a whole number, found 'five'"),
            (without(TORCHRUN, WORLD_SIZE="8.0"), "WORLD_SIZE must be a whole number, found '8.0'"),
            (without(TORCHRUN, LOCAL_RANK="x"), "LOCAL_RANK must be a whole number"),
            (without(TORCHRUN, MASTER_PORT="tcp://:1"), "MASTER_PORT must be a whole number"),
            (without(TORCHRUN, RANK="8"), "RANK=8 is outside WORLD_SIZE=8"),
            (without(TORCHRUN, RANK="-1"), "RANK=-1 is outside WORLD_SIZE=8"),
        ],
    )
    def test_a_broken_variable_is_named(self, environment: dict[str, str], problem: str) -> None:
        with pytest.raises(ConfigError, match=f"^environment: {problem}") as refusal:
            find_place(environment)
        assert len(refusal.value.problems) == 1


class TestLauncher:
    def test_gives_descriptors_pulse_and_attempt(self) -> None:
        assert find_place(LAUNCHER) == Place(
            rank=0,
            workers=2,
            local_rank=0,
            local_workers=2,
            master_port=40001,
            attempt=3,
            started_by="launcher",
            listen_fd=9,
            pulse=Path("/dev/fd/8"),
            launcher_pid=77,
        )
        assert found(LAUNCHER).launched

    def test_other_ranks_have_no_listening_socket(self) -> None:
        assert found(without(LAUNCHER, "DIST_TRAIN_LISTEN_FD", RANK="1", LOCAL_RANK="1")).listen_fd is None

    def test_attempts_of_an_outer_torchrun_do_not_count(self) -> None:
        assert found({**LAUNCHER, "TORCHELASTIC_RESTART_COUNT": "9"}).attempt == 3

    @pytest.mark.parametrize(
        "name", ["DIST_TRAIN_LAUNCHER_PID", "DIST_TRAIN_ATTEMPT", "DIST_TRAIN_LISTEN_FD"]
    )
    def test_a_broken_variable_is_named(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"environment: {name} must be a whole number, found 'x'"):
            find_place({**LAUNCHER, name: "x"})


class TestSrun:
    def test_gives_the_place_and_scontrol_the_first_host(self, scontrol: Path) -> None:
        place = found(SRUN)
        assert (place.rank, place.workers, place.local_rank, place.local_workers) == (5, 8, 1, 4)
        assert (place.master_address, place.started_by, place.launched) == ("node07", "srun", False)
        assert not place.agent_store

    def test_all_tasks_of_a_step_find_the_same_port_and_other_steps_another(self, scontrol: Path) -> None:
        ports = {found({**SRUN, "SLURM_PROCID": str(rank)}).master_port for rank in range(8)}
        assert len(ports) == 1
        assert ports < set(PORTS)
        assert found({**SRUN, "SLURM_STEP_ID": "1"}).master_port not in ports
        assert found({**SRUN, "SLURM_JOB_ID": "1235"}).master_port not in ports

    def test_a_given_address_needs_no_scontrol(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        place = found({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "5000"})
        assert (place.master_address, place.master_port) == ("head", 5000)

    def test_on_one_node_the_address_is_this_machine(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert found({**SRUN, "SLURM_STEP_NUM_NODES": "1"}).master_address == "127.0.0.1"

    def test_several_nodes_never_fall_back_to_localhost(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ConfigError, match="set MASTER_ADDR"):
            find_place(SRUN)

    def test_nor_where_scontrol_fails(self, scontrol: Path) -> None:
        with pytest.raises(ConfigError, match="set MASTER_ADDR"):
            find_place({**SRUN, "SLURM_STEP_NODELIST": "unknown"})

    def test_a_requeued_job_is_a_further_attempt(self, scontrol: Path) -> None:
        assert found({**SRUN, "SLURM_RESTART_COUNT": "2"}).attempt == 2

    @pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID"])
    def test_a_missing_or_broken_variable_is_named(self, scontrol: Path, name: str) -> None:
        with pytest.raises(ConfigError, match=f"environment: {name} is not set"):
            find_place(without(SRUN, name))
        with pytest.raises(ConfigError, match=f"environment: {name} must be a whole number, found 'x'"):
            find_place({**SRUN, name: "x"})


def test_a_variable_that_the_user_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_unless_given("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    set_unless_given("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


class TestTheTokenForClusters:
    def test_is_not_there_unless_given(self, tmp_path: Path) -> None:
        assert not cluster_token_given({"HOME": str(tmp_path)})
        assert not cluster_token_given({"HOME": str(tmp_path), "RAY_AUTH_TOKEN": ""})

    def test_is_a_variable_or_a_file_with_something_in_it(self, tmp_path: Path) -> None:
        assert cluster_token_given({"RAY_AUTH_TOKEN": "secret", "HOME": str(tmp_path)})
        file = tmp_path / "token"
        given = {"RAY_AUTH_TOKEN_PATH": str(file), "HOME": str(tmp_path)}
        assert not cluster_token_given(given)
        file.touch()
        assert not cluster_token_given(given)
        file.write_text("secret")
        assert cluster_token_given(given)

    def test_lies_where_ray_puts_it(self, tmp_path: Path) -> None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
        assert cluster_token_given({"HOME": str(tmp_path)})

    @pytest.mark.parametrize(("mode", "counts"), [("token", True), ("disabled", False), ("DISABLED", False)])
    def test_counts_only_where_authentication_is_on(self, mode: str, counts: bool) -> None:
        assert cluster_token_given({"RAY_AUTH_TOKEN": "secret", "RAY_AUTH_MODE": mode}) == counts


def test_variables_are_set_whatever_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_TRAIN_TEST_OLD", "old")
    monkeypatch.setenv("DIST_TRAIN_TEST_NEW", "")
    monkeypatch.delenv("DIST_TRAIN_TEST_NEW")
    set_variables({"DIST_TRAIN_TEST_OLD": "new", "DIST_TRAIN_TEST_NEW": "new"})
    assert os.environ["DIST_TRAIN_TEST_OLD"] == os.environ["DIST_TRAIN_TEST_NEW"] == "new"


def test_workers_of_all_replicas_are_counted_one_replica_after_the_other():
    places = [Place(rank=rank, workers=3, replica=replica) for replica in range(2) for rank in range(3)]
    assert [place.number for place in places] == [0, 1, 2, 3, 4, 5]
