import sys

import pytest
import torch

from dist_train import models
from dist_train.config.schema import Model
from dist_train.errors import ConfigError

SHAPE = {"inputs": 64, "outputs": 10, "channels": 1, "classes": 10}


@pytest.fixture(autouse=True)
def own_models(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_models_for_test.py").write_text(
        "import torch\n"
        "def linear(width, bias=True): return torch.nn.Linear(width, 1, bias=bias)\n"
        "def number(): return 3\n"
        "constant = 3\n"
    )
    yield
    sys.modules.pop("own_models_for_test", None)


@pytest.mark.parametrize("name", ["mlp", "cifar_resnet", "resnet18"])
def test_a_classifier_takes_from_the_shape_what_it_names(name):
    model = models.build(name, {}, **SHAPE).eval()
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_options_reach_the_constructor():
    assert models.build("mlp", {"hidden": [5]}, **SHAPE).layers[1].out_features == 5


def test_a_model_of_ones_own_gets_its_options_alone():
    model = models.build("own_models_for_test.py:linear", {"width": 4, "bias": False}, **SHAPE)
    assert model.in_features == 4
    assert model.bias is None


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("cifar_resnett", {}, "model.name: unknown model 'cifar_resnett'; did you mean cifar_resnet?"),
        ("mlp", {"hiden": [5]}, "model.hiden: unknown option; did you mean hidden?"),
        ("gpt", {}, "model.name: gpt does not fit this task, which does not tell its context"),
        ("own_models_for_test.py:linear", {"widht": 4}, "model.widht: unknown option; did you mean width?"),
        (
            "own_models_for_test.py:number",
            {},
            "model.name: own_models_for_test.py:number made a int; it must make a torch.nn.Module",
        ),
        (
            "own_models_for_test.py:constant",
            {},
            "model.name: own_models_for_test.py:constant is not callable; "
            "give a class or a function that makes the model",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(name, options, line):
    with pytest.raises(ConfigError) as caught:
        models.build(name, options, **SHAPE)
    assert caught.value.problems[0] == line


def test_a_model_that_does_not_fit_the_task_is_refused():
    (line,) = models.check(Model(name="gpt"), ("mlp", "cifar_resnet"))
    assert line == "model.name: gpt does not fit this task; choose one of mlp, cifar_resnet"


def test_a_model_that_does_not_import_is_a_problem_and_no_exception():
    (line,) = models.check(Model(name="nowhere.py:Net"))
    assert line.startswith("model.name: nowhere.py:Net: there is no file")
