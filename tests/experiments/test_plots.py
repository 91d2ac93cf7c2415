"""Every experiment from its runs to its tables and plots, with records in place of training."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from experiments import plots, runs

GRADIENTS = {"computed": 120, "applied": 100, "dropped": 20, "refused": 0}
STALENESS = {"mean": 1.5, "p50": 1, "p99": 3, "max": 4}


def records(directory):
    """What a run of ten updates leaves."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, 41):
        at = {"step": step, "samples": 32 * step, "wall_s": 0.1 * step + 0.001 * step % 3, "loss": 2.0 / step}
        lines += [{"kind": "train", "agreement": 0.1, **at}, {"kind": "val", "accuracy": 0.9, **at}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "events.jsonl").write_text('{"time": 1000.0, "event": "start", "step": 0}\n')
    summary = {
        "status": "done",
        "steps": 40,
        "val": {"loss": 0.05, "accuracy": 0.9},
        "gradients": GRADIENTS,
        "staleness": STALENESS,
        "waiting": {"bound": 1.0, "quorum": 0.5},
    }
    (directory / "summary.json").write_text(json.dumps(summary))


def measured():
    val = {"val": {"loss": 1.0, "accuracy": 0.9}}
    run = {"replicas": [val, val, val], "ensemble": val}
    apart = {"mean_abs_difference": 0.01, "changed_labels": 0.1}
    churn = [{"between": name, **apart} for name in ("replica_0", "ensemble")]
    return {"runs": [run, run], "churn": churn}


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Let runs leave records at once; return the folder of the plots."""

    def program(command, *words):
        if command == "evaluate":
            return json.dumps(measured())
        directory = Path(words[words.index("--run-dir") + 1])
        for part in ("", "replica_0"):
            records(directory / part)
        return ""

    monkeypatch.setattr(runs, "_program", program)
    monkeypatch.setattr(plots, "FOLDER", tmp_path / "plots")
    return tmp_path / "plots"


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("large_batch", ["large_batch"]),
        ("staleness", ["staleness"]),
        ("backup_workers", ["backup_workers", "backup_workers_speed"]),
        ("bounded", ["bounded", "bounded_loss"]),
        ("local_steps", ["local_steps"]),
        ("snapshots", ["snapshots"]),
        ("time_to_quality", []),
    ],
)
def test_an_experiment_prints_tables_and_draws_its_plots(name, images, drawn, tmp_path, capsys):
    importlib.import_module(f"experiments.{name}").make(tmp_path / "runs", range(2))
    tables = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(tables) > 3
    assert len({line.count("|") for line in tables}) <= 2
    assert sorted(file.stem for file in drawn.glob("*.png")) == images


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("text", "codistillation"),
        ("scarce", "codistillation_scarce"),
        ("long", "codistillation_long"),
        ("transfer", None),
        ("noisy", "codistillation_noisy"),
        ("churn", None),
        ("intervals", "codistillation_intervals"),
        ("overshoot", None),
        ("weight_decay", None),
    ],
)
def test_the_experiments_on_codistillation_print_a_line_for_each_setting(
    name, image, drawn, tmp_path, capsys
):
    from experiments import codistillation

    codistillation.EXPERIMENTS[name](tmp_path / "runs", 4)
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert [file.stem for file in drawn.glob("*.png")] == ([] if image is None else [image])


def test_a_label_of_the_noisy_digits_is_wrong_as_often_as_said_and_always_the_same_one():
    """Of those drawn anew one in ten comes out right."""
    from dist_train.tasks.digits import Digits
    from experiments.noisy_digits import WRONG, NoisyDigits

    (_, clean), (_, noisy) = Digits().train_data().columns, NoisyDigits().train_data().columns
    assert (clean != noisy).double().mean().item() == pytest.approx(0.9 * WRONG, abs=0.03)
    assert noisy.equal(NoisyDigits().train_data().columns[1])
    assert NoisyDigits().validation_data().columns[1].equal(Digits().validation_data().columns[1])
