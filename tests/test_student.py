"""Tests of a student: its teachers, which of them it refuses, and a whole run of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from dist_train import tasks
from dist_train.config import Config, load_config
from dist_train.core.step import Numerics
from dist_train.couplings import Coupling, Started
from dist_train.couplings.allreduce import AllReduce
from dist_train.couplings.codistillation import Progress
from dist_train.errors import DONE, REFUSED, ConfigError
from dist_train.exchange.collective import Alone
from dist_train.replica import Post, Replica
from dist_train.student import Pupil, Student, load_teachers, rehearse

Make = Callable[..., Path]
CPU = torch.device("cpu")
TABLE = f"{Path(__file__).parent / 'evaluate' / 'table_task.py'}:Table"


def student_of(*teachers: Path, loss: str = "kl", **sections: Any) -> Config:
    given = {
        "name": "student",
        "task": TABLE,
        "parallel": {"workers": 1, "device": "cpu"},
        "train": {"steps": 1, "batch_size": 5},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "distill": {"teachers": [str(each) for each in teachers], "loss": loss, "soft_weight": 1.0},
    }
    return load_config(given | sections)


class TestTeachers:
    def test_every_replica_of_every_run_teaches_frozen_and_in_evaluation_mode(self, done: Make) -> None:
        rows = [torch.rand(5, 3) for _ in range(3)]
        config = student_of(done("ensemble", *rows[:2]), done("single", rows[2]))
        loaded = load_teachers(config, CPU)
        assert [len(each.models) for each in loaded] == [2, 1]
        models = [model for each in loaded for model in each.models]
        assert [model.state_dict()["rows"].tolist() for model in models] == [each.tolist() for each in rows]
        assert not any(model.training for model in models)
        assert not any(each.requires_grad for model in models for each in model.parameters())

    def test_loading_them_draws_nothing_that_the_student_would(self, done: Make) -> None:
        config = student_of(done("teacher", 1, seed=3))
        torch.manual_seed(7)
        load_teachers(config, CPU)
        drawn = torch.rand(1)
        torch.manual_seed(7)
        assert torch.equal(drawn, torch.rand(1))

    def test_a_damaged_one_is_named(self, done: Make) -> None:
        run_dir = done("teacher", 1)
        (run_dir / "model.safetensors").write_bytes(b"nothing")
        with pytest.raises(ConfigError, match=r"^distill.teachers: .*model.safetensors: not a whole"):
            load_teachers(student_of(run_dir), CPU)


class TestRefusals:
    def refusal(self, config: Config) -> str:
        with pytest.raises(ConfigError) as refused:
            rehearse(config)
        (problem,) = refused.value.problems
        return problem

    def test_one_that_predicts_the_same_classes_will_do(self, done: Make) -> None:
        rehearse(student_of(done("teacher", torch.rand(5, 3))))

    def test_without_teachers_there_is_nothing_to_refuse(self) -> None:
        rehearse(student_of(Path("none"), distill=None))

    def test_other_classes(self, done: Make) -> None:
        run_dir = done("teacher", 1, task_options={"classes": 4})
        assert self.refusal(student_of(done("fit", 1), run_dir)) == (
            f"distill.teachers: {run_dir}: 4 classes, and the student has 3; give runs that predict what the "
            "student does"
        )

    def test_other_samples(self, done: Make) -> None:
        run_dir = done("teacher", 1, task="digits")
        problem = self.refusal(student_of(run_dir))
        assert problem.startswith(
            f"distill.teachers: {run_dir}: its model cannot predict the student's samples: "
        )

    def test_predictions_without_probabilities(self, done: Make) -> None:
        one = {"classes": 1, "loss": "squares"}
        run_dir = done("teacher", 1, task_options=one)
        problem = self.refusal(student_of(run_dir, task_options=one))
        assert problem.startswith("distill.loss: kl compares the probabilities of classes")
        rehearse(student_of(run_dir, loss="squared_error", task_options=one))

    def test_the_student_goes_on_as_it_was(self, done: Make) -> None:
        config = student_of(done("teacher", 1))
        task = tasks.make(config)
        model = task.model()
        student = Student(config, Alone())
        student.coupled(AllReduce(config.parallel, 0, 1), task, CPU)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        student.refuse_unfit(Pupil(task, model, task.validation_data(), Numerics(CPU)))
        assert model.training
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class WithPeer(Alone):
    """A group of two in which the other worker's figures are given beforehand."""

    workers = 2

    def __init__(self, *figures: float) -> None:
        self.figures = figures

    def gather(self, values: Tensor) -> Tensor:
        return torch.stack([values, torch.tensor(self.figures, dtype=values.dtype)])


class Inside:
    writes = True

    def start(self, model: nn.Module) -> Started:
        return Started(model, nullcontext)

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        return loss * share

    def update(self, apply: Any) -> None:
        apply()

    def observe(self, metrics: Any) -> None: ...


class TestFigures:
    BATCH = (torch.arange(5), torch.tensor([0, 1, 2, 0, 1]))

    def learning(self, config: Config, collective: Any) -> tuple[Student, Coupling]:
        task = tasks.make(config)
        student = Student(config, collective)
        return student, student.coupled(Inside(), task, CPU)

    def test_the_soft_loss_is_the_mean_over_workers_and_updates_by_share(self, done: Make) -> None:
        # With squared errors: scores of 1 where the teacher, after its norm of mean 0 and variance 1, has 3.
        config = student_of(done("teacher", torch.full((5, 3), 3.0)), loss="squared_error")
        # The other worker found 10 in a quarter of each of two updates.
        student, coupling = self.learning(config, WithPeer(10 * 0.5, 0.5))
        ones = torch.ones(5, 3)
        for _ in range(2):
            coupling.objective(torch.tensor(7.0), ones, self.BATCH, 0.75)
        assert student.figures() == {"soft_loss": pytest.approx((4 * 1.5 + 10 * 0.5) / 2)}

    def test_it_begins_anew_after_each_line(self, done: Make) -> None:
        config = student_of(done("teacher", torch.full((5, 3), 3.0)), loss="squared_error")
        student, coupling = self.learning(config, Alone())
        coupling.objective(torch.tensor(7.0), torch.zeros(5, 3), self.BATCH, 1.0)
        assert student.figures() == {"soft_loss": pytest.approx(9)}
        assert student.figures() == {}

    def test_without_teachers_nobody_is_asked_and_nothing_changes(self) -> None:
        inside, config = Inside(), student_of(Path("none"), distill=None)
        student = Student(config, None)  # type: ignore[arg-type]
        task = tasks.make(config)
        assert student.coupled(inside, task, CPU) is inside
        assert student.figures() == {}


class Others:
    """Another replica that always predicts 2."""

    def begin(self, model: nn.Module, updates: int) -> None: ...

    def predictions(self, scores: Tensor, batch: object, updates: int) -> list[Tensor]:
        return [torch.full_like(scores, 2.0)]

    def after(self, updates: int) -> None: ...


def test_the_share_of_teachers_is_of_the_task_s_loss_and_not_of_what_replicas_agree_on(
    done: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = done("teacher", torch.full((5, 3), 3.0))
    codistill = {"loss": "squared_error", "weight": 0.5}
    parallel = {"workers": 1, "replicas": 2}
    config = student_of(teacher, loss="squared_error", codistill=codistill, parallel=parallel)
    monkeypatch.setattr(Replica, "_from_the_board", lambda *_: Others())
    replica = Replica(config, Post(0, tmp_path / "run" / "replica_0", Alone()), CPU)
    coupling = replica.coupled(Inside(), tasks.make(config), Progress(lambda: 0, lambda: 1))
    objective = coupling.objective(torch.tensor(7.0), torch.ones(5, 3), TestFigures.BATCH, 1.0)
    # soft_weight is 1: nothing of 7, all of (3 - 1)^2, and half of (2 - 1)^2.
    assert objective.item() == pytest.approx(4.5)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dist_train", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.processes
@pytest.mark.timeout(240)
def test_a_student_trains_and_resumes_like_any_run(done: Make, tmp_path: Path) -> None:
    teacher = done("teacher", 1, 2, task="digits", model={"name": "mlp", "hidden": [32, 32]})
    small = {
        "name": "small",
        "task": "digits",
        "model": {"name": "mlp", "hidden": [8]},
        "parallel": {"workers": 2, "device": "cpu"},
        "train": {"steps": 12, "batch_size": 16, "deterministic": True},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "logging": {"tensorboard": False, "every_steps": 4},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    words = ("distill", "--teacher", str(teacher), "small.yaml", "distill.temperature=4")

    whole = run(tmp_path, *words, "--run-dir", "whole")
    assert whole.returncode == DONE, whole.stderr
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [4, 8, 12]
    assert all(line["soft_loss"] > 0 and line["loss"] > 0 for line in trained)

    assert run(tmp_path, *words, "--run-dir", "parts", "train.steps=5").returncode == DONE
    # The directory says everything: the teachers and the temperature too.
    resumed = run(tmp_path, "run", "parts/config.yaml", "--run-dir", "parts", "train.steps=12")
    assert resumed.returncode == DONE, resumed.stderr
    ends = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])

    other = run(tmp_path, "distill", "--teacher", str(done("table", 1)), "small.yaml", "--run-dir", "other")
    assert other.returncode == REFUSED
    assert "its model cannot predict the student's samples" in other.stderr
    assert not (tmp_path / "other/model.safetensors").exists()
