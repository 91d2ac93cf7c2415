"""A process that is killed in the middle of a commit, for real."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train.core.checkpoint import load_part, newest
from dist_train.core.commit import clean

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from torch.distributed import HashStore
from dist_train.core import failpoint
from dist_train.core.checkpoint import Facts, Part
from dist_train.core.commit import Committer, Draft
from dist_train.exchange.ballot import StoreBallot

directory, point = Path(sys.argv[1]), sys.argv[2]
committer = Committer(directory, 0, 1, "a", StoreBallot(HashStore(), "c", 0, 1), (2, None))

def save(turn, tag):
    draft = Draft(turn, 5, Facts(5, "h"), {"state": Part({"weight": torch.full((1000,), tag)}, {})})
    committer.commit(draft)

def strike(name):
    if name == point:
        os.kill(os.getpid(), signal.SIGKILL)

save(1, 1.0)
failpoint.strike = strike
save(2, 2.0)
"""


def temporaries(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir() if entry.name.startswith(".")]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("point", "tag"), [("file written", 1.0), ("predecessor aside", 1.0), ("renamed", 2.0)]
)
def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path, point, tag):
    command = [sys.executable, "-c", KILLED, str(tmp_path), point]
    assert subprocess.run(command, check=False, timeout=50).returncode == -signal.SIGKILL
    assert temporaries(tmp_path) != []
    for _ in ("before cleaning", "after"):
        found, rejected = newest(tmp_path)
        assert found is not None
        assert rejected == []
        assert load_part(found.path, "state").tensors["weight"].tolist() == [tag] * 1000
        clean(tmp_path)
    assert temporaries(tmp_path) == []
