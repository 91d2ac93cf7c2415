"""Tests of the command line: what it passes on, what it prints, and the exit status."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_train import cli, report
from dist_train.config import load_config
from dist_train.errors import ConfigError
from dist_train.runtime import start, submit
from dist_train.runtime.start import Request
from dist_train.runtime.submit import Submission

Run = Callable[..., int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process and return its exit status."""

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dist-train", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        status = end.value.code
        assert isinstance(status, int)
        return status

    return run


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    made: list[Request] = []
    monkeypatch.setattr(start, "run_request", lambda request: made.append(request) or 0)
    return made


def test_run_passes_everything_on(command: Run, requests: list[Request]) -> None:
    words = ["run", "a.yaml", "seed=1", "train.epochs=2", "--run-dir", "out", "--resume", "none"]
    assert command(*words) == 0
    assert requests == [Request(Path("a.yaml"), ("seed=1", "train.epochs=2"), Path("out"), "none")]


def test_run_resumes_where_it_can_by_default(command: Run, requests: list[Request]) -> None:
    command("run", "a.yaml")
    assert requests == [Request(Path("a.yaml"))]
    assert requests[0].resume == "auto"


def test_distill_is_a_run_with_teachers(command: Run, requests: list[Request]) -> None:
    words = ["distill", "--teacher", "runs/a", "--teacher", "b: c", "configs/digits-mlp.yaml", "seed=1"]
    assert command(*words, "--run-dir", "out", "--resume", "none") == 0
    (request,) = requests
    assert (request.run_dir, request.resume) == (Path("out"), "none")
    config = load_config(Path(__file__).parents[1] / request.config, request.overrides)
    assert config.seed == 1
    assert config.distill is not None
    assert config.distill.teachers == ("runs/a", "b: c")


@pytest.mark.parametrize("address", ["auto", "head:6379", "[::1]:6379"])
def test_an_address_is_that_of_the_cluster_in_the_configuration(
    command: Run, requests: list[Request], address: str
) -> None:
    command("run", "a.yaml", "seed=1", "--address", address)
    (request,) = requests
    assert request.overrides[0] == "seed=1"
    config = load_config(Path(__file__).parents[1] / "configs/digits-async.yaml", request.overrides)
    assert config.parallel.cluster.address == address


def test_a_cluster_for_mode_sync_is_refused_in_one_line(
    command: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(Path(__file__).parents[1] / "configs/digits-sync.yaml")
    for words in (["127.0.0.1:6379"], ["auto", "--dry-run"]):
        assert command("run", file, "--address", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "mode sync does not run on Ray; start it with torchrun or srun, or set parallel.mode" in line


def test_submit_passes_everything_on(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Submission] = []
    monkeypatch.setattr(submit, "send", lambda submission: sent.append(submission) or 75)
    words = ["submit", "--address", "http://head:8265", "a.yaml", "seed=1", "--run-dir", "out"]
    assert command(*words, "--resume", "none", "--working-dir", "here") == 75
    assert sent == [
        Submission("http://head:8265", Path("a.yaml"), Path("out"), ("seed=1",), "none", Path("here"))
    ]


@pytest.mark.parametrize("status", [0, 1, 2, 75])
def test_the_status_of_the_run_is_that_of_the_program(
    command: Run, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(start, "run_request", lambda request: status)
    assert command("run", "a.yaml") == status


def test_a_refusal_is_a_line_for_each_problem_and_status_2(
    command: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(request: Request) -> int:
        raise ConfigError(["a.yaml, line 3: unknown key", "task: unknown task"])

    monkeypatch.setattr(start, "run_request", refuse)
    assert command("run", "a.yaml") == 2
    written = capsys.readouterr()
    assert written.err == "dist-train: a.yaml, line 3: unknown key\ndist-train: task: unknown task\n"
    assert written.out == ""


def test_a_missing_file_is_named(command: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command("run", str(tmp_path / "none.yaml")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none.yaml" in line


def test_a_dry_run_prints_and_starts_nothing(
    command: Run,
    requests: list[Request],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(start, "dry_run_text", lambda request: f"arithmetic of {request.config}")
    assert command("run", "a.yaml", "--dry-run") == 0
    assert capsys.readouterr().out == "arithmetic of a.yaml\n"
    assert requests == []


def test_checkpoints_prints_a_line_for_each_and_fails_if_one_is_damaged(
    command: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ["step 1  verified", "step 2  verified"]
    monkeypatch.setattr(start, "checkpoint_lines", lambda run_dir: found)
    assert command("checkpoints", "runs/x") == 0
    assert capsys.readouterr().out == "step 1  verified\nstep 2  verified\n"
    found[1] = "step 2  state.safetensors: its content has changed"
    assert command("checkpoints", "runs/x") == 1


def test_report_passes_everything_on_and_says_where_to_look(
    command: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def written(run_dirs: list[Path], output: Path | None) -> report.Written:
        asked.append((run_dirs, output))
        return report.Written(Path("out/report.html"), Path("out/trace.json"), (Path("out/loss.png"),))

    monkeypatch.setattr(report, "report", written)
    assert command("report", "runs/a", "runs/b", "--output", "out") == 0
    assert asked == [([Path("runs/a"), Path("runs/b")], Path("out"))]
    assert capsys.readouterr().out.splitlines() == [
        "page      out/report.html",
        "timeline  out/trace.json",
        "charts    1 PNG files in out",
    ]


def test_a_report_on_what_is_no_run_is_refused(
    command: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command("report", str(tmp_path)) == 2
    assert capsys.readouterr().err.startswith(f"dist-train: {tmp_path}: no run directory")


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["bogus"],
        ["run", "a.yaml", "--bogus"],
        ["run", "a.yaml", "--resume"],
        ["checkpoints"],
        ["evaluate"],
        ["distill", "a.yaml"],
        ["report"],
        ["submit", "a.yaml"],
    ],
)
def test_wrong_usage_is_status_2(command: Run, requests: list[Request], words: list[str]) -> None:
    assert command(*words) == 2
    assert requests == []


@pytest.mark.parametrize("words", [["--help"], ["evaluate", "--help"], ["report", "--help"]])
def test_help_imports_neither_torch_nor_ray(words: list[str]) -> None:
    probe = (
        f"import sys\nfrom dist_train.cli import main\nsys.argv = ['dist-train', *{words}]\n"
        "try:\n    main()\nfinally:\n    print(sorted({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert answer.stdout.splitlines()[-1] == "[]"
    assert ("RUN_DIR" if words[0] in ("evaluate", "report") else "Train any PyTorch model") in answer.stdout


@pytest.mark.processes
def test_help_is_quick() -> None:
    """Processor time of the best of several: what other processes do to this machine counts less."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "dist_train", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_the_console_script_is_this_module() -> None:
    from importlib import metadata

    found: Any = {entry.name: entry.value for entry in metadata.entry_points(group="console_scripts")}
    assert found["dist-train"] == "dist_train.cli:main"
