"""A run as a job on a Ray cluster: sent, followed, and ended with the status that it ended with there."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dist_train.config import load_config
from dist_train.errors import DONE, FAILED, INTERRUPTED, REFUSED, ConfigError, TrainingError
from dist_train.runtime.opening import refuse_unsendable
from dist_train.runtime.start import tell

# Of the working directory, never sent: history, environments, and what earlier runs made.
EXCLUDED = (".git", ".venv", "/runs")
# What a stopped job gets beyond the time that its own configuration gives it to save; twice with replicas, as
# each has a launcher that is waited for.
MARGIN_S = 10
POLL_S = 0.5
# Without news of a job that long, it is not followed any further.
LOST_S = 60.0
# What a cluster says whose agent is still starting, and how long it may take.
NOT_YET = "No available agent"
START_S, RETRY_S = 60.0, 1.0
# An agent that finds its port taken goes on without taking jobs, and says so in its own log alone.
NEVER = (
    "its agent has not come up; the port it uses, 52365, may belong to another Ray of that machine, as a "
    "server run without --address starts: end that one, or start the head with "
    "--dashboard-agent-listen-port 0"
)
_LAST_LINE = "dist-train: exit status"


@dataclass(frozen=True)
class Submission:
    """What the command line asks for; ``run_dir`` is a path on the cluster, ``config`` one here."""

    address: str
    config: Path
    run_dir: Path | None
    overrides: tuple[str, ...] = ()
    resume: str = "auto"
    working_dir: Path = Path()


class Jobs(Protocol):
    """What is used of Ray's client for jobs."""

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any]) -> str: ...

    def get_job_info(self, job: str, /) -> Any: ...

    def stop_job(self, job: str, /) -> bool: ...

    def tail_job_logs(self, job: str, /) -> AsyncIterator[str]: ...


def send(submission: Submission, connect: Callable[[str], Jobs] | None = None) -> int:
    """Send the run, print its output, and return its exit status (see ``errors``).

    Raises ConfigError, before anything is sent, if the configuration is refused, lies outside the working
    directory, or could run on no cluster, if what the run leaves would be deleted with the job, or if the
    cluster is open to strangers or does not answer.
    """
    entrypoint = entrypoint_of(submission)
    config = load_config(submission.config, submission.overrides)
    refuse_unsendable(config)
    client = (connect or _connect)(submission.address)
    # Ray reads this in the process that stops the job; its own 3 s are short for a checkpoint.
    wait_s = int(config.recovery.grace_s) + MARGIN_S
    if config.parallel.replicas > 1:
        wait_s += MARGIN_S
    surroundings = {
        "working_dir": str(submission.working_dir.resolve()),
        "excludes": list(EXCLUDED),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(wait_s)},
    }
    job = _sent(client, entrypoint, surroundings)
    tell(f"sent as job {job} to {submission.address}")
    return asyncio.run(_Follower(client, job).follow())


def _sent(client: Jobs, entrypoint: str, surroundings: dict[str, Any]) -> str:
    """Send the job, again and again while the cluster is still starting; TrainingError when it takes none."""
    deadline = time.monotonic() + START_S
    told = False
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=surroundings)
        except RuntimeError as error:
            starting = NOT_YET in str(error)
            if not starting or time.monotonic() > deadline:
                raise TrainingError(f"the cluster takes no job: {NEVER if starting else error}") from error
        if not told:
            tell(f"the cluster takes no job yet; trying for {START_S:g} s")
            told = True
        time.sleep(RETRY_S)


def _connect(address: str) -> Jobs:
    from dist_train.runtime import ray_cluster

    client: Jobs = ray_cluster.jobs(address)
    return client


def entrypoint_of(submission: Submission) -> str:
    """Return the job's command: the run, and then a line with its status, lost otherwise when Ray stops it.

    ConfigError if the configuration lies outside the working directory, or the run's directory would lie in
    the copy of it that Ray makes for the job and deletes some time after.
    """
    if submission.run_dir is None or not submission.run_dir.is_absolute():
        given = "is missing" if submission.run_dir is None else f"{submission.run_dir} is no absolute path"
        raise ConfigError(
            f"--run-dir {given}: the run would leave its model in a folder of the job, which Ray deletes; "
            "give the path of a directory on storage that all machines of the cluster share"
        )
    try:
        config = submission.config.resolve().relative_to(submission.working_dir.resolve())
    except ValueError:
        raise ConfigError(
            f"{submission.config}: lies outside {submission.working_dir.resolve()}, and no more than that "
            "is sent; give --working-dir a folder that holds it"
        ) from None
    words = ["python", "-m", "dist_train", "run", str(config), *submission.overrides]
    words += ["--address", "auto", "--resume", submission.resume, "--run-dir", str(submission.run_dir)]
    # Ray sends the signal to this shell too: it has to wait for the run, which ends after saving.
    return f'trap : TERM; {shlex.join(words)}; status=$?; echo "{_LAST_LINE} $status"; exit $status'


class _Follower:
    """Prints a job's output as it comes and finds out how it ended."""

    def __init__(self, client: Jobs, job: str) -> None:
        self._client = client
        self._stopping: asyncio.Future[None] | None = None
        self._job = job
        self._shown = 0
        self._end = ""
        self._interrupts = 0

    async def follow(self) -> int:
        loop = asyncio.get_running_loop()
        following = asyncio.ensure_future(self._to_the_end())
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupted, following)
        try:
            return await following
        except asyncio.CancelledError:
            tell(f"job {self._job} goes on without anybody following it: ray job logs {self._job} shows it")
            return FAILED
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _interrupted(self, following: asyncio.Future[int]) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            following.cancel()
            return
        tell(f"stopping job {self._job}: it saves and ends (a second Ctrl-C leaves it to itself)")
        self._stopping = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        try:
            await asyncio.to_thread(self._client.stop_job, self._job)
        except Exception as error:
            # Whatever the client raises: nobody has stopped the job, and another Ctrl-C shall try again.
            tell(f"job {self._job} cannot be stopped: {error}")
            self._interrupts = 0

    async def _to_the_end(self) -> int:
        lost_s = 0.0
        while True:
            began = time.monotonic()
            try:
                await self._print_output()
                info = await asyncio.to_thread(self._client.get_job_info, self._job)
            except Exception as error:
                # Whatever the client raises: the way to the cluster may be broken for a moment.
                spent_s = time.monotonic() - began
                # A connection that held for so long was none of the lost ones.
                lost_s = 0.0 if spent_s > LOST_S else lost_s + spent_s + POLL_S
                if lost_s > LOST_S:
                    tell(f"job {self._job} cannot be followed any further: {error}")
                    return FAILED
            else:
                if info.status.is_terminal():
                    return self._status(info)
                lost_s = 0.0
            await asyncio.sleep(POLL_S)

    async def _print_output(self) -> None:
        """Print what has not been printed yet; returns when the job has ended or the connection has."""
        passed = 0
        async for text in self._client.tail_job_logs(self._job):
            new = text[max(0, self._shown - passed) :]
            passed += len(text)
            if new:
                self._shown += len(new)
                self._print(new)

    def _print(self, text: str) -> None:
        self._end = (self._end + text)[-100:]
        print(text, end="", flush=True, file=sys.stdout)

    def _status(self, info: Any) -> int:
        said = re.search(rf"^{_LAST_LINE} (\d+)\s*$", self._end, re.MULTILINE)
        status = info.driver_exit_code if said is None else int(said[1])
        if status in (DONE, FAILED, REFUSED, INTERRUPTED):
            return status
        reason = "killed before it could save" if self._interrupts else info.message or "Ray does not say why"
        tell(f"job {self._job} ended as {info.status.value.lower()}: {reason.splitlines()[0]}")
        return FAILED
