import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import pytest

from dist_train.errors import ConfigError
from dist_train.runtime import run_dir
from dist_train.runtime.run_dir import Lock, another_than, word_in

NOON = datetime(2026, 3, 1, 12, 0, 5)


def test_a_run_directory_is_named_after_the_run_and_the_time(tmp_path):
    path = run_dir.create(tmp_path, "digits", lambda: NOON)
    assert path == tmp_path / "digits" / "2026-03-01_12-00-05"
    assert path.is_dir()


def test_runs_of_the_same_second_get_directories_of_their_own(tmp_path):
    names = [run_dir.create(tmp_path, "digits", lambda: NOON).name for _ in range(3)]
    assert names == ["2026-03-01_12-00-05", "2026-03-01_12-00-05_2", "2026-03-01_12-00-05_3"]


def test_writing_atomically_replaces_the_text_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "summary.json"
    run_dir.write_atomically(path, "old")
    run_dir.write_atomically(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["summary.json"]


def test_a_failed_write_leaves_the_old_text_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    run_dir.write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        run_dir.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_second_run_in_a_directory_is_refused_by_name(tmp_path):
    with Lock(tmp_path), pytest.raises(ConfigError) as refused, Lock(tmp_path):
        pass
    message = str(refused.value)
    owner = f"is in use by process {os.getpid()} on host {socket.gethostname()} since 20"
    assert message.startswith(f"run directory {tmp_path} {owner}")
    assert message.endswith("wait for it, stop it, or give another --run-dir")


def test_a_directory_is_free_again_after_the_run(tmp_path):
    for _ in range(2):
        with Lock(tmp_path / "new"):
            pass
        assert (tmp_path / "new" / run_dir.LOCK).read_text() == ""


def test_a_refused_run_leaves_the_owner_in_place(tmp_path):
    with Lock(tmp_path):
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"process {os.getpid()} "), Lock(tmp_path):
                pass


@pytest.mark.processes
def test_a_killed_owner_frees_the_directory(tmp_path):
    code = (
        "import sys; from pathlib import Path; from dist_train.runtime.run_dir import Lock\n"
        "with Lock(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigError, match=f"process {owner.pid} "), Lock(tmp_path):
            pass
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        with Lock(tmp_path):
            pass


def leave_lock(path, **changes):
    """The lock file of a process that was killed, with these facts about it changed."""
    owner = replace(run_dir._this_process(), **changes)
    (path / run_dir.LOCK).write_text(json.dumps(asdict(owner)))


def test_a_lock_left_by_another_host_is_respected_while_its_owner_touches_it(tmp_path):
    leave_lock(tmp_path, host="elsewhere", pid=123)

    def touch(line):
        os.utime(tmp_path / run_dir.LOCK, (1, 1))

    with (
        pytest.raises(ConfigError, match="in use by process 123 on host elsewhere"),
        Lock(tmp_path, say=touch),
    ):
        pass


def test_a_lock_left_by_another_host_is_taken_when_nobody_touches_it(tmp_path):
    leave_lock(tmp_path, host="elsewhere", pid=123)
    said = []
    with Lock(tmp_path, say=said.append, patience_s=0.2):
        assert f'"pid": {os.getpid()}' in (tmp_path / run_dir.LOCK).read_text()
    assert "process 123 on host elsewhere" in said[0]


def test_what_the_kernel_says_counts_more_than_what_the_lock_file_says(tmp_path):
    leave_lock(tmp_path)
    with Lock(tmp_path):
        pass


def test_without_file_locks_a_living_process_of_this_host_keeps_its_directory(tmp_path, monkeypatch):
    def unsupported(file, how):
        raise OSError("no locks here")

    monkeypatch.setattr("dist_train.runtime.run_dir.fcntl.flock", unsupported)
    leave_lock(tmp_path)
    with pytest.raises(ConfigError, match=f"process {os.getpid()} "), Lock(tmp_path):
        pass
    leave_lock(tmp_path, process_start=0.0)
    with Lock(tmp_path):
        pass


def test_the_owner_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(Lock, "TOUCH_S", 0.01)
    with Lock(tmp_path):
        # The kernel's own lock does not reach another host: only the touching shows that the owner lives.
        leave_lock(tmp_path, host="elsewhere")
        monkeypatch.setattr("dist_train.runtime.run_dir.fcntl.flock", lambda file, how: None)
        with pytest.raises(ConfigError, match="on host elsewhere"), Lock(tmp_path, patience_s=10):
            pass


def test_the_environment_is_described_without_torch_and_without_secrets(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["dist-train", "run", "c.yaml", "task_options.api_key=hunter2", "seed=1"]
    )
    variables = {"RANK": "1", "OMP_NUM_THREADS": "2", "AWS_SECRET_ACCESS_KEY": "hunter2", "HOME": "/root"}
    facts = run_dir.environment(variables)
    assert facts["variables"] == {"OMP_NUM_THREADS": "2", "RANK": "1"}
    assert facts["command"][2:] == ["c.yaml", "task_options.api_key=***", "seed=1"]
    assert "hunter2" not in json.dumps(facts)
    assert {"torch", "numpy"} <= facts["versions"].keys()
    assert facts["host"] == socket.gethostname()


def test_the_commit_and_whether_files_were_changed_are_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_dir.environment({})["git"] is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "code.py").write_text("1")
    for command in (["init", "-q"], ["add", "code.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert run_dir.environment({})["git"] == {"commit": head.strip(), "dirty": False}
    (tmp_path / "code.py").write_text("2")
    assert run_dir.environment({})["git"] == {"commit": head.strip(), "dirty": True}


@pytest.mark.parametrize(
    ("installed", "visible", "expected"),
    [
        (0, None, 0),
        (0, "0,1", 0),
        (4, None, 4),
        (4, "", 0),
        (4, "-1", 0),
        (4, "2", 1),
        (4, "3, 1", 2),
        (4, "0,9,1", 1),
        (4, "0,-1,1", 1),
        (4, "GPU-8932f937,GPU-7a1b", 2),
        (4, "nonsense", 0),
    ],
)
def test_gpus_are_counted_as_cuda_would_show_them(monkeypatch, installed, visible, expected):
    monkeypatch.setattr(run_dir, "_gpu_names", lambda: ["H200"] * installed)
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert run_dir.gpu_count(variables) == expected


def test_importing_the_run_directory_and_launcher_imports_no_torch():
    code = "import sys, dist_train.runtime.launcher; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class TestTheSameDirectoryOnAnotherMachine:
    @pytest.fixture
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run_dir, "SEEN_AFTER_S", 0.0)

    def test_is_known_by_the_word_of_its_user(self, tmp_path: Path) -> None:
        with Lock(tmp_path):
            word = word_in(tmp_path)
            assert word
            assert another_than(word, tmp_path) is None
        assert word_in(tmp_path) == ""
        with Lock(tmp_path):
            assert word_in(tmp_path) not in ("", word)

    @pytest.mark.usefixtures("impatient")
    def test_is_told_from_one_without_a_user_and_from_one_of_another(self, tmp_path: Path) -> None:
        said = another_than("left elsewhere", tmp_path / "none")
        assert said is not None
        assert f"{tmp_path / 'none'} on host {socket.gethostname()} is not the one that" in said
        with Lock(tmp_path):
            said = another_than("left elsewhere", tmp_path)
        assert said is not None
        assert "belongs to another run" in said

    def test_may_be_seen_late(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with Lock(tmp_path / "here"):
            word = word_in(tmp_path / "here")
            monkeypatch.setattr(
                run_dir.time, "sleep", lambda s: (tmp_path / "here").rename(tmp_path / "there")
            )
            assert another_than(word, tmp_path / "there") is None
            (tmp_path / "there").rename(tmp_path / "here")
