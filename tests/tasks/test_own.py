import sys

import pytest

from dist_train import tasks
from dist_train.config.schema import Config
from dist_train.errors import ConfigError

METHODS = """
    def model(self): return self.size
    def train_data(self): return []
    def validation_data(self): return []
    def loss(self, model, batch): return None
"""

SOURCE = f"""
import functools
from dist_train.task import Task

class Mine:
    def __init__(self, size=3, depth=1): self.size = size
{METHODS}

class Needy:
    def __init__(self, size): self.size = size
{METHODS}

class Choosy:
    def __init__(self, model=None): self.chosen = model
{METHODS}

class Incomplete:
    def model(self): ...
    def train_data(self): ...
    loss = 3

class Abstract(Task):
    def model(self): ...
    def train_data(self): ...
    def validation_data(self): ...

def made(size=5): return Mine(size)
def wrong(): return 3
ready = Mine(7)
partly = functools.partial(Mine, depth=2)
number = 3
"""


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_tasks_for_test.py").write_text(SOURCE)
    yield
    sys.modules.pop("own_tasks_for_test", None)


def config(attribute, **more):
    basis = {"name": "x", "train": {"steps": 1, "batch_size": 1}, "optimizer": {"name": "sgd", "lr": 0.1}}
    return Config.model_validate(basis | {"task": f"own_tasks_for_test.py:{attribute}"} | more)


@pytest.mark.parametrize(
    ("attribute", "options", "size"),
    [("Mine", {"size": 4}, 4), ("made", {}, 5), ("ready", {}, 7), ("partly", {"size": 6}, 6)],
)
def test_a_class_a_function_or_the_task_itself_can_be_given(attribute, options, size):
    chosen = config(attribute, task_options=options)
    assert tasks.check(chosen) == []
    assert tasks.make(chosen).model() == size


def test_a_task_that_takes_a_model_gets_the_configurations():
    chosen = config("Choosy", model={"name": "mlp", "hidden": [3]})
    assert tasks.check(chosen) == []
    assert tasks.make(chosen).chosen == chosen.model
    assert tasks.make(config("Choosy")).chosen is None


OWN = "own_tasks_for_test.py"


@pytest.mark.parametrize(
    ("attribute", "more", "line"),
    [
        ("Mien", {}, f"task: {OWN}:Mien: {OWN} has no 'Mien'; did you mean Mine?"),
        ("Mine", {"task_options": {"sise": 4}}, "task_options.sise: unknown option; did you mean size?"),
        ("Needy", {}, "task_options.size: missing; this option is required"),
        ("made", {"task_options": {"depth": 4}}, "task_options.depth: unknown option; choose one of size"),
        ("Incomplete", {}, f"task: {OWN}:Incomplete lacks the methods validation_data, loss"),
        ("Abstract", {}, f"task: {OWN}:Abstract lacks the method loss"),
        ("number", {}, f"task: {OWN}:number lacks the methods model, train_data, validation_data, loss"),
        (
            "Mine",
            {"model": {"name": "mlp"}},
            f"model: task {OWN}:Mine makes its own model; remove the key model",
        ),
        (
            "ready",
            {"model": {"name": "mlp"}},
            f"model: task {OWN}:ready makes its own model; remove the key model",
        ),
        (
            "ready",
            {"task_options": {"size": 1}},
            f"task_options: {OWN}:ready is already made and takes no options; remove them",
        ),
        (
            "Choosy",
            {"model": {"name": "mlp"}, "task_options": {"model": 3}},
            "task_options.model: the key model is given too; keep one of them",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(attribute, more, line):
    assert tasks.check(config(attribute, **more)) == [line]
    with pytest.raises(ConfigError) as caught:
        tasks.make(config(attribute, **more))
    assert caught.value.problems == (line,)


def test_a_function_that_makes_no_task_is_refused_once_called():
    assert tasks.check(config("wrong")) == []
    with pytest.raises(ConfigError, match="wrong lacks the methods model"):
        tasks.make(config("wrong"))
