import inspect

import pytest

from dist_train import models
from dist_train.models.imports import resolve
from dist_train.models.options import OPTIONS, option_problems

FACTS = {"inputs", "outputs", "channels", "classes", "context", "vocabulary"}


def test_every_built_in_model_has_options():
    assert OPTIONS.keys() == models.BUILT_IN.keys()


@pytest.mark.parametrize("name", models.BUILT_IN)
def test_options_have_the_names_and_defaults_of_the_constructor(name):
    parameters = inspect.signature(resolve(models.BUILT_IN[name])).parameters
    expected = {p.name: p.default for p in parameters.values() if p.name not in FACTS}
    assert {key: field.default for key, field in OPTIONS[name].model_fields.items()} == expected


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("mlp", {"hiden": [3]}, "model.hiden: unknown option; did you mean hidden?"),
        ("mlp", {"outputs": 3}, "model.outputs: unknown option; choose one of activation, hidden"),
        ("mlp", {"hidden": 3}, "model.hidden: expected a list (each item a whole number above 0), found 3"),
        ("mlp", {"activation": "relo"}, "model.activation: expected one of relu, gelu, tanh, found 'relo'"),
        ("cifar_resnet", {"depth": 21}, "model: depth must be 6n + 2 (20, 32, 44, ...), found 21"),
        ("gpt", {"width": 100, "heads": 3}, "model: width 100 must be a multiple of heads 3"),
        ("gpt", {"layers": "4"}, "model.layers: expected a whole number above 0, found '4'"),
    ],
)
def test_a_wrong_option_is_one_line_with_its_place_and_what_is_allowed(name, given, line):
    assert option_problems(OPTIONS[name], given, "model") == [line]


def test_a_list_with_several_wrong_items_is_one_problem():
    (line,) = option_problems(OPTIONS["mlp"], {"hidden": [0, -1]}, "model")
    assert line.endswith("found [0, -1]")


def test_all_wrong_options_are_told_at_once():
    assert len(option_problems(OPTIONS["gpt"], {"layers": 0, "dropout": 2, "depth": 3}, "model")) == 3
