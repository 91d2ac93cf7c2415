"""Whole evaluations: of runs that were trained, of one task after the other, of two runs together."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from dist_train import cli, tasks
from dist_train.config import load_config
from dist_train.core.checkpoint import Facts
from dist_train.core.commit import Committer, Draft
from dist_train.core.state import State
from dist_train.errors import ConfigError
from dist_train.evaluate import evaluate
from dist_train.exchange.ballot import StoreBallot

Make = Callable[..., Path]

FIRST = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.9, 0.05, 0.05]])
SECOND = torch.tensor([[0.2, 0.4, 0.4], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1], [0.1, 0.85, 0.05]])
TEXT = {"paths": [str(Path(__file__).parent)], "context": 16, "validation_share": 0.2}
GPT = {"name": "gpt", "layers": 1, "heads": 1, "width": 8}


class TestTwoRuns:
    def test_replica_0_of_each_and_the_ensembles_are_compared(self, done: Make) -> None:
        settings = {"validation": {"batch_size": 2}}
        first = done("first", FIRST.log(), SECOND.log(), **settings)
        second = done("second", SECOND.log(), SECOND.log(), **settings)
        report = evaluate([first, second])
        assert [len(run.replicas) for run in report.runs] == [2, 2]
        alone, together = report.churn
        # Sums of |p - q| in each sample: 1.2, 0.4, 1.2, 0.8, 1.6; all labels differ.
        assert (alone.between, together.between) == ("replica_0", "ensemble")
        assert alone.mean_abs_difference == pytest.approx(5.2 / 15, rel=1e-5)
        assert alone.changed_labels == 1
        # The mean of the two is half as far from the second; the labels are 0, 0, 2, 1, 0 and 1, 0, 2, 1, 1.
        assert together.mean_abs_difference == pytest.approx(2.6 / 15, rel=1e-5)
        assert together.changed_labels == pytest.approx(2 / 5)

    def test_an_ensemble_counts_only_where_both_have_one(self, done: Make) -> None:
        report = evaluate([done("first", FIRST, SECOND), done("second", FIRST)])
        (churn,) = report.churn
        assert (churn.between, churn.mean_abs_difference, churn.changed_labels) == ("replica_0", 0, 0)

    def test_a_run_is_not_apart_from_itself(self, done: Make) -> None:
        run_dir = done("run", 1, task="digits")
        (churn,) = evaluate([run_dir, run_dir]).churn
        assert (churn.mean_abs_difference, churn.changed_labels) == (0, 0)

    def test_each_measures_what_it_would_alone(self, done: Make) -> None:
        first, second = (done(f"seed {seed}", seed, task="digits") for seed in (1, 2))
        together = evaluate([first, second])
        assert together.runs == evaluate([first]).runs + evaluate([second]).runs
        assert 0 < together.churn[0].mean_abs_difference < 1

    def test_predictions_of_other_shapes_are_refused(self, done: Make) -> None:
        first = done("first", torch.zeros(5, 3))
        second = done("second", torch.zeros(5, 4), task_options={"classes": 4})
        with pytest.raises(ConfigError, match=r"second: predictions of shape \[5, 4\], and .* has \[5, 3\]"):
            evaluate([first, second])

    def test_other_tasks_are_refused(self, done: Make) -> None:
        with pytest.raises(ConfigError, match="two runs are compared on one task"):
            evaluate([done("first", 1), done("second", 1, task="digits")])


class TestBuiltInTasks:
    def test_text_is_measured_by_its_bytes(self, done: Make) -> None:
        settings = {"task": "text", "task_options": TEXT, "model": GPT}
        report = evaluate([done("first", 1, 2, **settings), done("second", 3, 4, **settings)])
        for run in report.runs:
            for measures in (*run.replicas, run.ensemble):
                # Without training every byte is about as likely as any other.
                assert measures["bits_per_byte"] == pytest.approx(8, abs=0.1)
                assert measures["loss"] == pytest.approx(measures["bits_per_byte"] * 0.6931, rel=1e-3)
        alone, together = report.churn
        assert together.mean_abs_difference < alone.mean_abs_difference < 1 / 256

    def test_an_ensemble_of_networks_is_no_worse_than_their_mean(self, done: Make) -> None:
        model = {"name": "cifar_resnet", "depth": 8, "width": 4}
        report = evaluate([done("run", 1, 2, task="digits", model=model)])
        (run,) = report.runs
        assert len(run.replicas) == 2
        assert run.ensemble is not None
        # Jensen's inequality, minus the logarithm being convex.
        assert run.ensemble["loss"] <= sum(each["loss"] for each in run.replicas) / 2

    def test_three_runs_of_any_task_are_measured_one_by_one(self, done: Make) -> None:
        report = evaluate([done("a", 1, task="digits"), done("b", FIRST), done("c", 1, 2, task="digits")])
        assert [run.samples for run in report.runs] == [360, 5, 360]
        assert report.churn == ()


def test_the_generators_are_left_alone(done: Make) -> None:
    run_dir = done("run", FIRST, SECOND)
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.rand(1), random.random()
    torch.manual_seed(1)
    random.seed(1)
    evaluate([run_dir])
    assert (torch.rand(1), random.random()) == expected


class TestCommand:
    def ended(self, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["dist-train", "evaluate", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        status = end.value.code
        assert isinstance(status, int)
        return status

    def test_checkpoints_are_given_with_commas(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.ended(monkeypatch, "run", "--checkpoints", "200;400") == 2
        assert "give steps with commas between them" in capsys.readouterr().err

    def test_prints_the_table_or_one_object(
        self, done: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = done("first", FIRST.log(), SECOND.log()), done("second", SECOND.log())
        assert self.ended(monkeypatch, *words) == 0
        printed = capsys.readouterr()
        assert printed.out == evaluate(words).text() + "\n"
        assert printed.err == ""
        assert self.ended(monkeypatch, *words, "--json") == 0
        assert json.loads(capsys.readouterr().out) == evaluate(words).record()

    def test_refuses_in_one_line(
        self, done: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert self.ended(monkeypatch, done("first", 1), tmp_path / "none") == 2
        written = capsys.readouterr()
        assert written.out == ""
        (line,) = written.err.splitlines()
        assert line.startswith(f"dist-train: {tmp_path}/none: no run directory")


@pytest.mark.processes
def test_a_run_that_was_trained_measures_what_its_workers_did(done: Make, tmp_path: Path) -> None:
    from dist_train import load_config, train

    given: dict[str, Any] = {
        "name": "trained",
        "task": "digits",
        "parallel": {"workers": 2, "device": "cpu"},
        "train": {"steps": 20, "batch_size": 16},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "model": {"name": "cifar_resnet", "depth": 8, "width": 4},
        "logging": {"tensorboard": False},
    }
    summary = train(load_config(given), tmp_path / "run")
    (run,) = evaluate([tmp_path / "run"]).runs
    assert run.samples == 360
    assert run.replicas == (pytest.approx(summary["val"], rel=1e-5),)


class TestCheckpoints:
    """A run's model at several times, as if each were a replica; here the steps are the models' seeds."""

    @pytest.fixture
    def trained(self, done: Make) -> Path:
        run_dir = done("run", 6, task="digits")
        task = tasks.make(load_config(run_dir / "config.yaml"))
        committer = Committer(
            run_dir / "checkpoints", 0, 1, "a", StoreBallot(HashStore(), "c", 0, 1), (9, None)
        )
        for step in (2, 4, 6):
            torch.manual_seed(step)
            model = task.model()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            state = State(model, optimizer, torch.device("cpu"))
            committer.commit(Draft(step, step, Facts(0, "c"), {"state": state.shared_part()}))
        return run_dir

    def test_are_measured_each_and_together(self, trained: Path) -> None:
        (run,) = evaluate([trained], [2, 4, 6]).runs
        assert [name for name, _ in run.models] == ["step_00000002", "step_00000004", "step_00000006"]
        losses = [measures["loss"] for _, measures in run.models]
        assert len(set(losses)) == 3
        assert run.ensemble is not None
        # By Jensen's inequality a mean of probabilities loses no more than its members do on average.
        assert run.ensemble["loss"] <= sum(losses) / 3

    def test_hold_the_same_weights_as_what_was_delivered_then(self, trained: Path) -> None:
        (last,), (delivered,) = evaluate([trained], [6]).runs, evaluate([trained]).runs
        assert last.replicas == delivered.replicas

    def test_that_are_not_there_are_named(self, trained: Path) -> None:
        with pytest.raises(ConfigError, match=r"no checkpoint of step 3; there are 2, 4, 6"):
            evaluate([trained], [2, 3])

    def test_that_are_damaged_are_named(self, trained: Path) -> None:
        file = trained / "checkpoints/step_00000004/state.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ConfigError, match=r"step_00000004: state\.safetensors"):
            evaluate([trained], [4])

    def test_of_several_replicas_are_those_of_one_of_them(self, done: Make) -> None:
        run_dir = done("pair", 1, 2, task="digits")
        with pytest.raises(ConfigError, match=r"several replicas; give the directory of one, .*replica_0"):
            evaluate([run_dir], [2])
