"""The directory of a run: what lies where in it, who may use it, and what the run was made with."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any, Self

import psutil

from dist_train.errors import ConfigError
from dist_train.layout import CRASH, LOCK, LOGS
from dist_train.watch.atomic import replacing

PACKAGES = ("dist-train", "torch", "numpy", "pydantic", "safetensors", "tensorboard", "ray")
# A network file system may show another machine's file that much later; and between two looks.
SEEN_AFTER_S, LOOK_S = 10.0, 0.2
# Everything else in the environment may be a secret and is not written down.
VARIABLES = re.compile(
    r"(OMP|MKL|OPENBLAS)_NUM_THREADS|GLIBC_TUNABLES|CUDA_VISIBLE_DEVICES|CUBLAS_WORKSPACE_CONFIG|PYTHONHASHSEED"
    r"|(LOCAL_|GROUP_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|(GLOO|NCCL)_SOCKET_IFNAME|NCCL_DEBUG"
    r"|TORCH_DISTRIBUTED_DEBUG|TORCHELASTIC_(RESTART_COUNT|MAX_RESTARTS|RUN_ID)"
    r"|SLURM_(JOB_ID|JOB_NODELIST|NNODES|NTASKS|PROCID|LOCALID|NODEID|RESTART_COUNT)"
)
_SECRET_ARGUMENT = re.compile(r"(?i)^(.*(?:token|secret|password|passwd|credential|api_?key)[^=]*)=.+$")


def create(base: Path, name: str, clock: Callable[[], datetime] = datetime.now) -> Path:
    """Make and return ``base/name/<yyyy-mm-dd_HH-MM-SS>``, with a number behind it if that one exists."""
    stem = base / name / clock().strftime("%Y-%m-%d_%H-%M-%S")
    for number in count(1):
        path = stem if number == 1 else stem.with_name(f"{stem.name}_{number}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("unreachable: the numbers never end")


def log_file(run: Path, rank: int) -> Path:
    return run / LOGS / f"rank_{rank:05d}.log"


def shard_log(run: Path, number: int) -> Path:
    return run / LOGS / f"shard_{number:03d}.log"


def crash_file(run: Path, rank: int) -> Path:
    return run / CRASH / f"rank_{rank:05d}.json"


def write_atomically(path: Path, text: str) -> None:
    """Replace the file's text on disk so that a reader, or a crash, sees the old or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


@dataclass(frozen=True)
class Owner:
    """Who uses a run directory. ``process_start`` tells the process from a later one of the same id.

    By ``word``, which is nowhere else, processes on other machines know that they see the same directory.
    """

    pid: int
    host: str
    process_start: float
    since: str
    word: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host} since {self.since}"

    @property
    def runs_here(self) -> bool:
        try:
            return abs(psutil.Process(self.pid).create_time() - self.process_start) < 2
        except psutil.Error:
            return False


class Lock:
    """Keeps a run directory for one process. The kernel frees it with the process, however that ends.

    Not every shared file system carries locks from host to host. So the owner also touches the lock file
    every few seconds, and a lock left by another host counts as abandoned only when nobody has touched it
    for ``patience_s`` (its own clock does not matter). Raises ConfigError naming the owner.
    """

    TOUCH_S = 4.0

    def __init__(
        self, run: Path, say: Callable[[str], None] = lambda line: None, patience_s: float = 20.0
    ) -> None:
        self._path = run / LOCK
        self._run = run
        self._say = say
        self._patience_s = patience_s
        self._released = threading.Event()

    def __enter__(self) -> Self:
        self._run.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+", encoding="utf-8")
        try:
            self._refuse_if_used()
            self._write(json.dumps(asdict(_this_process())))
        except BaseException:
            self._file.close()
            raise
        self._toucher = threading.Thread(target=self._keep_touching, name="run lock", daemon=True)
        self._toucher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._released.set()
        self._toucher.join()
        self._write("")
        self._file.close()

    def _refuse_if_used(self) -> None:
        local_locks = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(_read_owner(self._path)) from None
        except OSError:
            local_locks = False
        owner = _read_owner(self._path)
        if owner is None:
            return
        if owner.host != socket.gethostname():
            if self._is_touched(owner):
                raise self._in_use(owner)
        elif not local_locks and owner.runs_here:
            raise self._in_use(owner)

    def _in_use(self, owner: Owner | None) -> ConfigError:
        return ConfigError(
            f"run directory {self._run} is in use by {owner or 'another process'}: "
            "wait for it, stop it, or give another --run-dir"
        )

    def _is_touched(self, owner: Owner) -> bool:
        before = _touched_at(self._path)
        self._say(f"{self._run} was left by {owner}; looking for {self._patience_s:.0f} s whether it lives")
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            if _touched_at(self._path) != before:
                return True
            time.sleep(self._patience_s / 20)
        return False

    def _write(self, text: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)
        self._file.flush()
        # Another machine sees of an open file what was sent to the server.
        os.fsync(self._file.fileno())

    def _keep_touching(self) -> None:
        while not self._released.wait(self.TOUCH_S):
            with suppress(OSError):
                os.utime(self._file.fileno())


def _this_process() -> Owner:
    start = psutil.Process().create_time()
    since = datetime.now().isoformat(" ", "seconds")
    return Owner(os.getpid(), socket.gethostname(), start, since, secrets.token_hex(8))


def word_in(run: Path) -> str:
    """Return the word of whoever uses the directory; empty if nobody does."""
    owner = _read_owner(run / LOCK)
    return "" if owner is None else owner.word


def another_than(word: str, run: Path) -> str | None:
    """Say that this machine's ``run`` is not the directory whose user left ``word``; None if it is."""
    deadline = time.monotonic() + SEEN_AFTER_S
    while (found := word_in(run)) != word:
        if time.monotonic() > deadline:
            what = "belongs to another run" if found else "is not the one that the run was started in"
            return (
                f"run directory {run} on host {socket.gethostname()} {what}; give a --run-dir on storage "
                "that all machines of the cluster share"
            )
        time.sleep(LOOK_S)
    return None


def _read_owner(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _touched_at(path: Path) -> int:
    # Network file systems refresh what they know of a file when it is opened.
    with path.open() as file:
        return os.fstat(file.fileno()).st_mtime_ns


def environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """Describe what the run is made with, for env.json. Imports no torch and writes down no secret."""
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpu_names(),
        "git": _git(),
        "command": [_SECRET_ARGUMENT.sub(r"\1=***", argument) for argument in sys.argv],
        "directory": os.getcwd(),
        "variables": {name: text for name, text in sorted(variables.items()) if VARIABLES.fullmatch(name)},
    }


def gpu_count(variables: Mapping[str, str]) -> int:
    """Count the NVIDIA GPUs that CUDA would show this process, without importing torch.

    As in CUDA, the list in CUDA_VISIBLE_DEVICES ends at the first entry that names no device.
    """
    installed = len(_gpu_names())
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    if visible is None or installed == 0:
        return installed
    names = [name.strip() for name in visible.split(",")]
    for position, name in enumerate(names):
        is_device = name.startswith(("GPU-", "MIG-")) or (name.isdigit() and int(name) < installed)
        if not is_device:
            return position
    return len(names)


def _gpu_names() -> list[str]:
    """Ask the driver's files first: nvidia-smi may take a second."""
    names = []
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            model = re.search(r"^Model:\s*(.*)$", information.read_text(), re.MULTILINE)
            names.append(model[1].strip() if model else "NVIDIA GPU")
    if names:
        return names
    listed = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return listed.splitlines() if listed else []


def _git() -> dict[str, Any] | None:
    commit = _output("git", "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _output("git", "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": changes is None or changes != ""}


def _output(*command: str) -> str | None:
    """Return what a command prints, None when it is missing, fails, or takes more than 5 seconds."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
