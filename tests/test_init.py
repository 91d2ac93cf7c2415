"""Tests of the package itself: what it offers, and that importing it costs nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

import dist_train


def test_every_public_name_can_be_had() -> None:
    assert set(dist_train.__all__) == {"Rows", "Task", "load_config", "train"}
    for name in dist_train.__all__:
        assert callable(getattr(dist_train, name))


def test_an_unknown_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        dist_train.trian  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert dist_train.__version__ == metadata.version("dist-train")


def test_importing_it_loads_neither_torch_nor_ray() -> None:
    probe = "import sys, dist_train; print(sorted({'torch', 'ray', 'numpy', 'pydantic'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
