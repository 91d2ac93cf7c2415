import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress

import psutil
import pytest

from dist_train.config.schema import Recovery
from dist_train.errors import TrainingError
from dist_train.runtime import run_dir
from dist_train.runtime.launcher import Job, available_cpus, launch, shared_variables

PRELUDE = """
import ctypes, json, os, signal, subprocess, sys, threading, time
from pathlib import Path
from dist_train.runtime import children
from dist_train.runtime.pulse import PulseWriter

children.die_with_launcher(int(os.environ["DIST_TRAIN_LAUNCHER_PID"]))
children.dump_stacks_on_request()
rank, attempt = int(os.environ["RANK"]), int(os.environ["DIST_TRAIN_ATTEMPT"])
workers = int(os.environ["WORLD_SIZE"])
run = Path(sys.argv[1])
pulse = PulseWriter(os.environ["DIST_TRAIN_PULSE"], rank)

def say(name, text=""):
    (run / f".{name}").write_text(text)
    (run / f".{name}").rename(run / name)

def hear(name):
    while not (run / name).exists():
        time.sleep(0.01)

def meet(name):
    say(f"{name}_{rank}_{attempt}")
    for other in range(workers):
        hear(f"{name}_{other}_{attempt}")

def fail(error, phase="forward", step=412):
    children.report_crash(run, rank, phase, step, error)
    sys.exit(1)

def hang():
    while True:
        signal.pause()

def stop_on(*names):
    def handler(number, frame):
        with open(run / f"got_{rank}", "a") as file:
            file.write(signal.Signals(number).name + " ")
        sys.exit(75)
    for name in names:
        signal.signal(getattr(signal, name), handler)
"""


class Result:
    def __init__(self):
        self.status = None
        self.lines = []
        self.events = []

    def named(self, name):
        return [event for event in self.events if event["event"] == name]


@pytest.fixture
def run(tmp_path):
    """Launch workers that run ``body``; no process of theirs may be left afterwards."""

    def run(body, workers=2, first_step_of=lambda: 0, patient=False, **recovery):
        result = Result()
        settings = Recovery(**{"backoff_s": 0.01, "grace_s": 20.0, **recovery})
        argv = [sys.executable, "-c", PRELUDE + textwrap.dedent(body), str(tmp_path)]
        job = Job(argv, workers, tmp_path, settings, first_step_of, patient=patient)
        result.status = launch(job, result.lines.append, result.events.append)
        return result

    yield run
    left = [child for child in psutil.Process().children() if str(tmp_path) in " ".join(child.cmdline())]
    for child in left:
        child.kill()
    assert left == []


def log(tmp_path, rank):
    return run_dir.log_file(tmp_path, rank).read_text()


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


# What workers are given.


@pytest.mark.processes
def test_each_worker_knows_its_place_and_rank_0_gets_the_listening_socket(run, tmp_path):
    result = run(
        """
        import socket
        names = ["WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS"]
        say(f"place_{rank}", json.dumps([os.environ[name] for name in names]))
        assert ("DIST_TRAIN_LISTEN_FD" in os.environ) == (rank == 0)
        if rank == 0:
            with socket.socket(fileno=int(os.environ["DIST_TRAIN_LISTEN_FD"])) as listener:
                for _ in range(workers - 1):
                    listener.accept()[0].close()
        else:
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            socket.create_connection(address).close()
        """,
        workers=3,
    )
    assert result.status == 0
    assert (result.lines, result.events) == ([], [])
    for rank in range(3):
        size, local_rank, local_size, address, threads = json.loads((tmp_path / f"place_{rank}").read_text())
        assert (size, local_rank, local_size, address) == ("3", str(rank), "3", "127.0.0.1")
        assert int(threads) >= 1


def job(tmp_path, **changes):
    return Job(
        **{
            "argv": ["x"],
            "workers": 2,
            "run_dir": tmp_path,
            "recovery": Recovery(),
            "first_step_of": lambda: 0,
            **changes,
        }
    )


def test_cores_are_shared_out_unless_the_user_has_decided(tmp_path):
    cores = available_cpus()
    assert shared_variables(job(tmp_path), 0, {})["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    assert shared_variables(job(tmp_path, workers=10**6), 0, {})["OMP_NUM_THREADS"] == "1"
    assert shared_variables(job(tmp_path), 0, {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"
    assert shared_variables(job(tmp_path), 0, {"GLIBC_TUNABLES": "own"})["GLIBC_TUNABLES"] == "own"
    own = job(tmp_path, environment={"GLOO_SOCKET_IFNAME": "eth0"})
    assert shared_variables(own, 0, {})["GLOO_SOCKET_IFNAME"] == "eth0"


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1)]
)
def test_a_quota_of_the_container_counts_as_fewer_cores(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    limit = tmp_path / "cpu.max"
    assert available_cpus(limit) == 8
    limit.write_text(quota + "\n")
    assert available_cpus(limit) == expected


@pytest.mark.processes
def test_output_goes_to_the_logs_but_rank_0_prints_where_the_launcher_does(run, tmp_path, capfd):
    run("print(f'out {rank}'); print(f'err {rank}', file=sys.stderr)")
    assert capfd.readouterr().out == "out 0\n"
    assert log(tmp_path, 0) == "err 0\n"
    assert sorted(log(tmp_path, 1).split("\n")) == ["", "err 1", "out 1"]


# How workers end.


@pytest.mark.processes
@pytest.mark.parametrize(("statuses", "expected"), [((0, 0), 0), ((75, 75), 75), ((75, 0), 75)])
def test_workers_that_end_in_good_order_decide_the_exit_status(run, statuses, expected):
    result = run(f"sys.exit({statuses}[rank])")
    assert (result.status, result.lines) == (expected, [])


@pytest.mark.processes
def test_a_refusal_is_shown_and_not_retried(run):
    result = run(
        """
        if rank == 1:
            from dist_train.errors import Mismatch
            children.report_crash(run, rank, "starting", 0, Mismatch("worker 1 has another seed: 1, not 0"))
            sys.exit(2)
        hang()
        """
    )
    assert result.status == 2
    assert result.lines == ["worker 1 has another seed: 1, not 0"]
    assert [event["event"] for event in result.events] == ["refused"]


@pytest.mark.processes
def test_a_refusal_without_a_report_shows_the_last_line_of_the_log(run):
    result = run("sys.stderr.write('usage: wrong\\n'); sys.exit(2)")
    assert (result.status, result.lines) == (2, ["usage: wrong"])


@pytest.mark.processes
def test_a_crash_is_reported_with_rank_place_first_error_and_log(run, tmp_path):
    result = run(
        """
        if rank == 0:
            meet("ready")
            hear("crash/rank_00001.json")
            fail(RuntimeError("[pair.cc:534] Connection closed by peer"))
        meet("ready")
        fail(RuntimeError("boom"), "backward")
        """,
        max_restarts=0,
    )
    assert result.status == 1
    failure, reason = result.lines
    assert failure.startswith("worker 1 (")
    assert ") failed in step 412, phase backward: RuntimeError: boom; log: " in failure
    assert failure.endswith("logs/rank_00001.log")
    assert reason == "not restarting: recovery.max_restarts is 0"
    (event,) = result.named("failure")
    assert (event["rank"], event["step"], event["phase"]) == (1, 412, "backward")
    assert "boom" in json.loads((tmp_path / "crash/rank_00001.json").read_text())["traceback"]


@pytest.mark.processes
def test_an_exit_without_a_report_quotes_the_log(run):
    result = run("if rank == 1: raise ImportError('no module named x')\nhang()", max_restarts=3)
    assert result.status == 1
    assert "phase starting: exit status 1: ImportError: no module named x; log: " in result.lines[0]
    assert result.lines[1] == "not restarting: the workers failed before their first step"


@pytest.mark.processes
def test_an_attempt_is_not_explained_by_the_log_of_the_one_before(run):
    result = run(
        """
        pulse.phase("data", 5)
        if attempt == 0:
            print("first words", file=sys.stderr, flush=True)
        os._exit(3)
        """,
        workers=1,
    )
    failures = [event["error"] for event in result.named("failure")]
    assert failures == ["exit status 3: first words", "exit status 3: nothing in its log"]


@pytest.mark.processes
def test_the_end_of_a_worker_is_noticed_without_waiting_for_the_next_poll(run, monkeypatch):
    monkeypatch.setattr("dist_train.runtime.launcher.POLL_S", 600.0)
    assert run("sys.exit(75 * rank)").status == 75


@pytest.mark.processes
def test_a_killed_worker_is_named_with_its_signal_and_place(run):
    result = run(
        """
        if rank == 0:
            hang()
        pulse.phase("update", 7)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        max_restarts=0,
    )
    assert result.status == 1
    assert "was killed by SIGKILL" in result.lines[0]
    assert result.lines[0].startswith("worker 1 (")
    assert "in step 7, phase update; log: " in result.lines[0]


@pytest.mark.processes
def test_processes_that_a_worker_started_end_with_it(run, tmp_path):
    run(
        """
        loader = subprocess.Popen(["sleep", "600"])
        say(f"loader_{rank}", str(loader.pid))
        meet("ready")
        if rank == 1:
            os._exit(3)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hang()
        """,
        max_restarts=0,
    )
    loaders = [int((tmp_path / f"loader_{rank}").read_text()) for rank in range(2)]
    wait_until(lambda: all(gone(pid) for pid in loaders))


@pytest.mark.processes
def test_a_command_that_cannot_be_started_is_an_error(tmp_path):
    impossible = job(tmp_path, argv=[str(tmp_path / "nothing")])
    with pytest.raises(TrainingError, match=r"worker 0 cannot be started: .*nothing"):
        launch(impossible, print, print)


@pytest.mark.processes
def test_a_failure_half_way_through_the_start_leaves_no_worker(run, tmp_path):
    run_dir.log_file(tmp_path, 1).mkdir(parents=True)
    with pytest.raises(TrainingError, match="worker 1 cannot be started"):
        run("hang()")


@pytest.mark.processes
def test_an_error_in_the_launcher_leaves_no_worker(run, monkeypatch):
    monkeypatch.setattr("dist_train.runtime.launcher.Watch", None)
    with pytest.raises(TypeError):
        run("hang()")


# Restarts.


@pytest.mark.processes
def test_a_failed_attempt_is_followed_by_one_from_the_last_checkpoint(run, tmp_path):
    result = run(
        """
        if attempt < 2 and rank == 1:
            fail(RuntimeError("boom"), step=410 + attempt)
        if attempt < 2:
            hang()
        """,
        first_step_of=lambda: 400,
    )
    assert result.status == 0
    assert result.lines[1] == "restarting from step 400 in 0.0 s (attempt 2)"
    assert result.lines[3] == "restarting from step 400 in 0.0 s (attempt 3)"
    restarts = [(event["attempt"], event["reason"], event["from_step"]) for event in result.named("restart")]
    assert restarts == [(1, "RuntimeError: boom", 400), (2, "RuntimeError: boom", 400)]
    crashes = sorted(path.name for path in (tmp_path / "crash").iterdir())
    assert crashes == ["rank_00001.attempt_0.json", "rank_00001.attempt_1.json"]


@pytest.mark.processes
def test_the_same_step_failing_twice_ends_the_run(run):
    result = run("if rank == 1: fail(RuntimeError('boom'))\nhang()", first_step_of=lambda: 400)
    assert result.status == 1
    assert result.lines[-1] == "not restarting: step 412 failed twice: RuntimeError: boom"
    assert [event["event"] for event in result.events] == ["failure", "restart", "failure", "gave_up"]


@pytest.mark.processes
def test_crash_reports_of_an_earlier_launch_are_kept_apart(run, tmp_path):
    for _ in range(3):
        assert run("fail(RuntimeError('boom'))", workers=1, max_restarts=0).status == 1
    crashes = sorted(path.name for path in (tmp_path / "crash").iterdir())
    assert crashes == ["rank_00000.attempt_0.json", "rank_00000.attempt_1.json", "rank_00000.json"]


@pytest.mark.processes
def test_a_request_to_stop_ends_the_wait_for_a_restart(run):
    asked = itertools.count()

    def first_step_of():
        # Asked at the start, and again after the failure.
        if next(asked) == 1:
            signal.raise_signal(signal.SIGTERM)
        return 0

    crash = 'fail(RuntimeError("boom"))'
    result = run(crash, first_step_of=first_step_of, backoff_s=600.0, max_backoff_s=600.0)
    assert result.status == 75
    assert result.lines[-1] == "interrupted between two attempts: resume the run to continue"


# Signals.


@pytest.mark.processes
@pytest.mark.parametrize(
    ("sent", "received"),
    [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGUSR2", "SIGUSR2")],
)
def test_a_signal_is_passed_on_to_all_workers(run, tmp_path, sent, received):
    result = run(
        f"""
        stop_on("SIGTERM", "SIGUSR1", "SIGUSR2")
        meet("ready")
        if rank == 1:
            os.kill(os.getppid(), signal.{sent})
        hang()
        """
    )
    announced = "stopping: the workers finish their step and save (a second Ctrl-C kills them)"
    assert (result.status, result.lines) == (75, [announced])
    assert result.events == [{"event": "signal", "signal": received}]
    assert [(tmp_path / f"got_{rank}").read_text() for rank in range(2)] == [received + " "] * 2


@pytest.mark.processes
def test_the_handlers_of_the_caller_are_back_afterwards(run):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    run("pass")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)] == before


SAVE_SLOWLY = """
signal.signal(signal.SIGTERM, lambda number, frame: say(f"saving_{rank}"))
signal.signal(signal.SIGUSR1, lambda number, frame: say(f"saving_{rank}"))
meet("ready")
if rank == 1:
    os.kill(os.getppid(), signal.%s)
    hear("saving_0"), hear("saving_1")
    os.kill(os.getppid(), signal.%s)
hang()
"""


@pytest.mark.processes
def test_a_second_order_to_stop_kills_at_once(run):
    result = run(SAVE_SLOWLY % ("SIGINT", "SIGINT"), grace_s=600.0)
    assert result.status == 1
    assert result.lines[1:] == ["killed the workers on a second SIGINT: what was not saved is lost"]


@pytest.mark.processes
def test_a_second_order_kills_nobody_where_somebody_else_sees_to_that(run):
    result = run(SAVE_SLOWLY % ("SIGTERM", "SIGTERM"), patient=True, grace_s=1.0)
    assert [event["signal"] for event in result.named("signal")] == ["SIGTERM"]
    # What ends them is the limit of their own grace.
    assert not any("on a second" in line for line in result.lines)


@pytest.mark.processes
def test_sigterm_after_an_early_warning_by_sigusr1_is_a_first_order_to_stop(run):
    result = run(SAVE_SLOWLY % ("SIGUSR1", "SIGTERM"), grace_s=1.0)
    assert [event["signal"] for event in result.named("signal")] == ["SIGUSR1", "SIGTERM"]
    assert not any("on a second" in line for line in result.lines)


@pytest.mark.processes
def test_workers_that_do_not_stop_in_time_are_killed_and_named(run, tmp_path):
    result = run(
        """
        stop_on("SIGTERM")
        if rank == 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        meet("ready")
        if rank == 1:
            os.kill(os.getppid(), signal.SIGTERM)
        hang()
        """,
        grace_s=0.5,
    )
    assert result.status == 1
    assert result.lines[1].startswith("killed worker 1: still running 0.5 s (recovery.grace_s) after")
    assert "in hang" in log(tmp_path, 1)


@pytest.mark.processes
def test_a_worker_that_stops_by_itself_gives_the_others_the_grace_time_only(run):
    result = run("if rank == 1: sys.exit(75)\nhang()", grace_s=0.5)
    assert result.status == 1
    assert result.lines[0].startswith("killed worker 0: still running")


@pytest.mark.processes
def test_a_signal_before_the_workers_can_handle_it_interrupts_them(run):
    result = run("meet('ready')\nif rank == 1: os.kill(os.getppid(), signal.SIGUSR1)\nhang()")
    assert result.status == 75
    assert result.lines[1].startswith("interrupted before the workers could save: worker ")


@pytest.mark.processes
def test_a_failure_after_a_request_to_stop_is_not_retried(run):
    result = run(
        """
        def save(number, frame):
            fail(OSError("disk full"), "saving") if rank == 1 else None
        signal.signal(signal.SIGTERM, save)
        meet("ready")
        if rank == 1:
            os.kill(os.getppid(), signal.SIGTERM)
        hang()
        """
    )
    assert result.status == 1
    assert result.named("restart") == []
    assert "phase saving: OSError: disk full" in result.lines[1]


# Hung workers.


@pytest.mark.processes
def test_a_stopped_worker_is_found_named_and_restarted_with_all_stacks_written(run, tmp_path):
    result = run(
        """
        def stand_still():
            os.kill(os.getpid(), signal.SIGSTOP)
            hang()
        pulse.phase("forward" if rank else "backward", 7)
        if attempt == 0:
            stand_still() if rank == 1 else hang()
        """,
        frozen_after_s=1.5,
    )
    assert result.status == 0
    found = result.lines[0]
    assert found.startswith("worker 1 is frozen in step 7, phase forward: no sign of life for ")
    assert found.endswith(f"stacks of all workers in {tmp_path / 'logs'}")
    assert "in stand_still" in log(tmp_path, 1)
    assert "in hang" in log(tmp_path, 0)
    (event,) = result.named("hung")
    assert event["ranks"] == [1]
    assert len(result.named("restart")) == 1


@pytest.mark.processes
def test_native_code_that_holds_the_interpreter_lock_is_found(run, tmp_path):
    result = run(
        """
        def hold():
            ctypes.PyDLL(None).sleep(600)
        pulse.phase("forward", 7)
        hold() if rank == 1 else hang()
        """,
        frozen_after_s=1.5,
        max_restarts=0,
    )
    assert result.status == 1
    assert result.lines[0].startswith("worker 1 is frozen in step 7, phase forward")
    assert "in hold" in log(tmp_path, 1)


HUNG_LOADER = """
for phase in ("data", "forward", "backward", "data"):
    pulse.phase(phase, 7)
if rank == 0:
    for phase in ("forward", "backward"):
        pulse.phase(phase, 7)
meet("ready")
"""


@pytest.mark.processes
def test_a_loop_that_does_not_move_is_found_and_those_who_wait_for_it_are_not_blamed(run, tmp_path):
    result = run(HUNG_LOADER + "threading.Event().wait()", hung_after_s=0.5, max_restarts=0)
    assert result.status == 1
    assert result.lines[0].startswith("worker 1 is hung in step 7, phase data: no progress for ")
    (event,) = result.named("failure")
    assert (event["rank"], event["step"], event["phase"]) == (1, 7, "data")
    for rank in range(2):
        assert "most recent call first" in log(tmp_path, rank)


@pytest.mark.processes
def test_a_worker_that_failed_but_did_not_end_is_reported_by_its_error(run):
    crash = 'children.report_crash(run, 1, "data", 7, ValueError("bad file")) if rank == 1 else None\nhang()'
    result = run(HUNG_LOADER + crash, hung_after_s=0.5, max_restarts=0)
    assert "failed in step 7, phase data: ValueError: bad file; log:" in result.lines[1]


@pytest.mark.processes
def test_a_start_that_takes_too_long_is_found(run):
    result = run("hang()", workers=1, start_timeout_s=1.0, max_restarts=0)
    assert result.lines[0].startswith("worker 0 is hung in step 0, phase starting: no progress for ")


# The launcher's own death.


@pytest.mark.processes
def test_workers_die_with_their_launcher_however_it_dies(tmp_path):
    body = (
        PRELUDE
        + 'signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay(f"pid_{rank}", str(os.getpid()))\nhang()'
    )
    code = (
        "import sys; from pathlib import Path; from dist_train.config.schema import Recovery\n"
        "from dist_train.runtime.launcher import Job, launch\n"
        "argv = [sys.executable, '-c', sys.argv[2], sys.argv[1]]\n"
        "launch(Job(argv, 2, Path(sys.argv[1]), Recovery(), lambda: 0), print, print)"
    )
    paths = [tmp_path / f"pid_{rank}" for rank in range(2)]
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), body]) as launcher:
        try:
            wait_until(lambda: all(path.exists() for path in paths))
        finally:
            launcher.send_signal(signal.SIGKILL)
    workers = [int(path.read_text()) for path in paths]
    try:
        wait_until(lambda: all(gone(pid) for pid in workers))
    finally:
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.processes
def test_a_worker_whose_launcher_is_gone_before_it_looks_ends_at_once(tmp_path):
    variables = {**os.environ, "DIST_TRAIN_LAUNCHER_PID": "1"}
    worker = subprocess.run(
        [sys.executable, "-c", PRELUDE + "print('alive')", str(tmp_path)],
        env=variables,
        capture_output=True,
        text=True,
    )
    assert (worker.returncode, worker.stdout) == (1, "")
    assert worker.stderr == "the launcher (process 1) is gone: nothing to do\n"
