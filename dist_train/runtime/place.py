"""Where this process stands among the workers of its run, as the environment tells it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dist_train.errors import ConfigError

PORTS = range(20_000, 60_000)

_REPLICA = "DIST_TRAIN_REPLICA"
_REPLICAS_PID = "DIST_TRAIN_REPLICAS_PID"
_RELAY = "DIST_TRAIN_RELAY"


@dataclass(frozen=True)
class Place:
    """One worker's place: its rank among all workers of the run and among those of its host.

    ``listen_fd`` is the listening socket that the launcher opened for rank 0, ``pulse`` the file that the
    launcher watches; both are None under torchrun and srun. ``agent_store`` says that torchrun's agent
    already serves the store at the master address.
    """

    rank: int = 0
    workers: int = 1
    local_rank: int = 0
    local_workers: int = 1
    master_address: str = "127.0.0.1"
    master_port: int = 0
    attempt: int = 0
    started_by: str = "nobody"
    agent_store: bool = False
    listen_fd: int | None = None
    pulse: Path | None = None
    launcher_pid: int | None = None
    # Which of several models this worker trains.
    replica: int = 0

    @property
    def number(self) -> int:
        """Its number among the workers of all replicas, one replica after the other."""
        return self.replica * self.workers + self.rank

    @property
    def host(self) -> str:
        return socket.gethostname()

    @property
    def launched(self) -> bool:
        return self.started_by == "launcher"


def find_place(environment: Mapping[str, str] | None = None) -> Place | None:
    """Return the place that the launcher, torchrun or srun gave this process; None when nobody did."""
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        return _from_torchrun(env)
    # Inside an sbatch script SLURM_PROCID is set too, but only srun starts a step of several tasks.
    if "SLURM_STEP_ID" in env and _integer(env, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _from_slurm(env)
    return None


def find_replica(environment: Mapping[str, str] | None = None) -> tuple[int, int] | None:
    """Return which of several replicas this process starts, and the process that started it; or None."""
    env = os.environ if environment is None else environment
    return (_integer(env, _REPLICA), _integer(env, _REPLICAS_PID)) if _REPLICA in env else None


def replica_variables(number: int, pid: int) -> dict[str, str]:
    """Return what tells a process which of several replicas it starts, for process ``pid``."""
    return {_REPLICA: str(number), _REPLICAS_PID: str(pid)}


def relay_variables(address: str) -> dict[str, str]:
    """Return what tells a worker where replicas exchange predictions."""
    # Names in the kernel's own namespace begin with a byte that no variable can hold.
    return {_RELAY: address.removeprefix("\0")}


def relay_address() -> str:
    """Return where this worker's replica exchanges predictions with others."""
    return "\0" + os.environ[_RELAY]


def set_unless_given(variable: str, text: str) -> None:
    """Set a variable that libraries read when they start, unless the user has set it."""
    os.environ.setdefault(variable, text)


def set_variables(variables: Mapping[str, str]) -> None:
    """Set variables for this process and for those it starts from now on."""
    os.environ.update(variables)


def cluster_token_given(environment: Mapping[str, str] | None = None) -> bool:
    """Say whether this user has a token for Ray clusters, and has not turned authentication off."""
    env = os.environ if environment is None else environment
    if env.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        return False
    if env.get("RAY_AUTH_TOKEN"):
        return True
    file = Path(env["RAY_AUTH_TOKEN_PATH"]) if env.get("RAY_AUTH_TOKEN_PATH") else _default_token(env)
    return file.is_file() and file.stat().st_size > 0


def cluster_has_tls(environment: Mapping[str, str] | None = None) -> bool:
    """Say whether Ray talks to its clusters by certificates, which both sides have to show."""
    env = os.environ if environment is None else environment
    return env.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _default_token(env: Mapping[str, str]) -> Path:
    return Path(env.get("HOME", "~")).expanduser() / ".ray" / "auth_token"


def _from_torchrun(env: Mapping[str, str]) -> Place:
    rank, workers = _integer(env, "RANK"), _integer(env, "WORLD_SIZE")
    if not 0 <= rank < workers:
        raise ConfigError(f"environment: RANK={rank} is outside WORLD_SIZE={workers}")
    launched = "DIST_TRAIN_LAUNCHER_PID" in env
    pulse = env.get("DIST_TRAIN_PULSE")
    return Place(
        rank=rank,
        workers=workers,
        local_rank=_integer(env, "LOCAL_RANK", rank),
        local_workers=_integer(env, "LOCAL_WORLD_SIZE", workers),
        master_address=env.get("MASTER_ADDR", "127.0.0.1"),
        master_port=_integer(env, "MASTER_PORT"),
        attempt=_integer(env, "DIST_TRAIN_ATTEMPT" if launched else "TORCHELASTIC_RESTART_COUNT", 0),
        started_by="launcher" if launched else "torchrun",
        agent_store=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        listen_fd=_integer(env, "DIST_TRAIN_LISTEN_FD") if "DIST_TRAIN_LISTEN_FD" in env else None,
        pulse=Path(pulse) if pulse is not None else None,
        launcher_pid=_integer(env, "DIST_TRAIN_LAUNCHER_PID") if launched else None,
        replica=_integer(env, _REPLICA, 0),
    )


def _from_slurm(env: Mapping[str, str]) -> Place:
    job, step = _integer(env, "SLURM_JOB_ID"), _integer(env, "SLURM_STEP_ID")
    workers = _integer(env, "SLURM_STEP_NUM_TASKS")
    nodes = max(1, _integer(env, "SLURM_STEP_NUM_NODES", 1))
    return Place(
        rank=_integer(env, "SLURM_PROCID"),
        workers=workers,
        local_rank=_integer(env, "SLURM_LOCALID"),
        local_workers=_integer(env, "SLURM_NTASKS_PER_NODE", workers // nodes),
        master_address=env.get("MASTER_ADDR") or _first_slurm_host(env, nodes),
        master_port=_integer(env, "MASTER_PORT", PORTS[(job * 31 + step) % len(PORTS)]),
        attempt=_integer(env, "SLURM_RESTART_COUNT", 0),
        started_by="srun",
    )


def _first_slurm_host(env: Mapping[str, str], nodes: int) -> str:
    if nodes == 1:
        return "127.0.0.1"
    scontrol = shutil.which("scontrol")
    if scontrol and "SLURM_STEP_NODELIST" in env:
        command = [scontrol, "show", "hostnames", env["SLURM_STEP_NODELIST"]]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.split():
            return answer.stdout.split()[0]
    # Falling back to localhost would let every node train alone.
    raise ConfigError(
        "environment: the first host of this Slurm step cannot be found with 'scontrol show hostnames'; "
        "set MASTER_ADDR to the name of the host that runs rank 0"
    )


def _integer(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name)
    if text is None or text == "":
        if default is None:
            raise ConfigError(
                f"environment: {name} is not set although this process is one of several workers"
            )
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"environment: {name} must be a whole number, found {text!r}") from None
