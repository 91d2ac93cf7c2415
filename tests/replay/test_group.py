"""A group in one process has the bits of real workers that all-reduce their gradients over Gloo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import server_group
import server_runs
import torch
import toys
import yaml

from dist_train.replay import replay
from dist_train.replay.log import Gradient
from dist_train.replay.member import Computed, ReplayedMember

TASK = Path(__file__).with_name("line_task.py")


# As torch chooses it, all of the toy's parameters are in one.
SMALL_BUCKETS = {"bucket_mb": 0.0002}
CASES = {
    "three": {"parallel": SMALL_BUCKETS},
    "four": {"parallel": SMALL_BUCKETS | {"workers": 4, "group_size": 4}},
    "accumulated": {"train": {"accumulate": 2, "clip_norm": 0.1}},
    "bf16": {"parallel": SMALL_BUCKETS | {"compression": "bf16"}},
    "powersgd": {"parallel": {"compression": "powersgd", "powersgd_rank": 1, "powersgd_start": 3}},
    "local steps": {"parallel": {"local_steps": 2, "compression": "bf16"}},
    "momentum": {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
    "unused parameters": {
        "parallel": {"find_unused_parameters": True},
        "task": f"{toys.__file__}:Choosing",
        "task_options": {},
    },
    "refused gradients": {"task": f"{toys.__file__}:Poisoned", "task_options": {"norm": "centred"}},
}


@pytest.mark.processes
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_group_is_replayed_as_gloo_added_it_up(
    group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]
) -> None:
    parallel = {"mode": "async", "workers": 3, "group_size": 3, "device": "cpu"} | case.get("parallel", {})
    train = {"steps": 9, "batch_size": 4, "deterministic": True} | case.get("train", {})
    options = {"task_options": {"norm": "batch", "dropout": 0.2, "size": 72}} | case
    config = server_runs.config_of(**options | {"parallel": parallel, "train": train})
    statistics = group(parallel["workers"]).run(server_group.train, config, tmp_path / "run")[0]["statistics"]
    computed = computed_by(monkeypatch)
    line = replay(tmp_path / "run")
    assert re.match(r"9 updates of \d+ gradients made again, 9 of them checked: .* bit for bit$", line)
    assert torch.equal(computed[-1].statistics, statistics)


def computed_by(monkeypatch: pytest.MonkeyPatch) -> list[Computed]:
    """Return a list to which the members of a replay add what they compute."""
    computed, compute = list[Computed](), ReplayedMember.compute

    def kept(member: ReplayedMember, gradient: Gradient) -> Computed:
        computed.append(compute(member, gradient))
        return computed[-1]

    monkeypatch.setattr(ReplayedMember, "compute", kept)
    return computed


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_run_of_groups_is_replayed_to_the_bit(tmp_path: Path) -> None:
    """Two groups of two, with clipping, accumulated batches, batch norm, dropout, two shards."""
    config = {
        "name": "groups",
        "task": f"{TASK}:Line",
        "parallel": {
            "mode": "async",
            "workers": 4,
            "group_size": 2,
            "device": "cpu",
            "server": {"shards": 2},
        },
        "train": {"steps": 12, "batch_size": 4, "accumulate": 2, "clip_norm": 0.5, "deterministic": True},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "logging": {"tensorboard": False},
    }
    (tmp_path / "groups.yaml").write_text(yaml.safe_dump(config))
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "dist_train", "run", "groups.yaml", "--run-dir", str(run_dir)]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False)
    assert made.returncode == 0, made.stderr
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "done"
    line = replay(run_dir)
    # Those that were on their way at the end are computed, too.
    assert re.match(r"12 updates of 1[2-4] gradients made again, 12 of them checked: .* bit for bit$", line)
