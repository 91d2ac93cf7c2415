"""A group in one process has the bits of real workers that all-reduce their gradients over Gloo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dist_train.replay import replay

TASK = Path(__file__).with_name("line_task.py")


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
