"""What a run came to, read from its validations; a mean with its spread; a table."""

from __future__ import annotations

import json
import math

import pytest

from experiments import runs
from experiments.runs import Curve, command, lines_of, markdown, over_seeds, train, validations

FALLING = Curve((10, 20, 30), (2.0, 1.0, 0.5))


class TestStepsToALoss:
    @pytest.mark.parametrize(
        ("loss", "steps"), [(3.0, 10.0), (2.0, 10.0), (1.5, 15.0), (0.75, 25.0), (0.5, 30.0), (0.4, math.inf)]
    )
    def test_lie_on_the_straight_line_between_two_validations(self, loss, steps):
        assert FALLING.steps_to(loss) == steps

    def test_are_those_of_the_first_time(self):
        assert Curve((1, 2, 3), (1.0, 2.0, 1.0)).steps_to(1.0) == 1.0


def test_a_mean_comes_with_the_deviation_between_seeds():
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.deviation) == (2.0, 1.0)
    assert str(found) == "2 ± 1"


def test_a_curve_is_read_from_the_validations_alone(tmp_path):
    lines = [{"kind": "train", "step": 5, "loss": 9.0}, {"kind": "val", "step": 5, "loss": 1.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert validations(tmp_path) == Curve((5,), (1.5,))
    assert [line["loss"] for line in lines_of(tmp_path, "train")] == [9.0]


def test_a_table_is_markdown():
    assert markdown(["a", "b"], [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_one_seed_is_refused_for_it_has_no_spread(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "--seeds", "1"])
    with pytest.raises(SystemExit):
        command("x", None, lambda folder, seeds: pytest.fail("nothing is run"))
    assert "a spread needs at least 2" in capsys.readouterr().err


class TestRunsThatAreDone:
    @pytest.fixture
    def made(self, tmp_path, monkeypatch):
        """Train in a folder with settings, without a program; return how often it was begun."""
        config, begun = tmp_path / "config.yaml", []
        config.write_text("name: mine")

        def program(*words):
            begun.append(words)
            run_dir = tmp_path / "run"
            (run_dir / "summary.json").write_text('{"status": "done"}')
            return ""

        monkeypatch.setattr(runs, "_program", program)

        def make(*overrides):
            train(config, tmp_path / "run", *overrides)
            return len(begun)

        return make

    def test_are_not_made_twice(self, made):
        assert [made("seed=1"), made("seed=1")] == [1, 1]

    def test_are_made_anew_with_other_settings(self, made):
        assert [made("seed=1"), made("seed=2"), made("seed=2")] == [1, 2, 2]
