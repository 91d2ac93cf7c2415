"""Tests of what the experiments on codistillation refuse."""

from __future__ import annotations

import sys

import pytest

from experiments import codistillation


@pytest.mark.parametrize("seeds", ["5", "2", "0", "-4", "four"])
def test_seeds_that_make_no_pairs_to_compare_are_refused(
    seeds: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(codistillation, "EXPERIMENTS", {})
    monkeypatch.setattr(sys, "argv", ["codistillation", "--seeds", seeds])
    with pytest.raises(SystemExit) as refused:
        codistillation.main()
    assert refused.value.code == 2
    assert "argument --seeds: " in capsys.readouterr().err


def test_an_even_number_is_taken() -> None:
    assert codistillation.even("6") == 6
