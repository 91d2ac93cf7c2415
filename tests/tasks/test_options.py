import inspect
from pathlib import Path

import pytest

from dist_train import tasks
from dist_train.models.imports import resolve
from dist_train.tasks import options
from dist_train.tasks.options import OPTIONS, missing_package


def test_every_built_in_task_has_options():
    assert OPTIONS.keys() == tasks.BUILT_IN.keys()


@pytest.mark.parametrize("name", tasks.BUILT_IN)
def test_options_have_the_names_and_defaults_of_the_constructor(name):
    parameters = inspect.signature(resolve(tasks.BUILT_IN[name])).parameters
    defaults = {p.name: p.default for p in parameters.values() if p.default is not p.empty}
    fields = OPTIONS[name].model_fields
    assert [*fields, "model"] == list(parameters)
    assert {n: f.default for n, f in fields.items() if not f.is_required()} | {"model": None} == defaults


def test_a_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert options.Images.model_validate({"data_dir": "~/images"}).data_dir == Path("/home/ann/images")
    assert options.Text.model_validate({"paths": ["~/a", "b"]}).paths == (Path("/home/ann/a"), Path("b"))


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    assert missing_package("json", "anything", "digits") == []
    assert missing_package("not_installed_anywhere", "scikit-learn", "digits") == [
        "task: digits needs the package scikit-learn, which is not installed; run: pip install scikit-learn"
    ]


def test_images_without_a_height_and_a_width_fit_the_mlp_alone():
    assert options.Synthetic(shape=(100,)).models == ("mlp",)
    assert "cifar_resnet" in options.Synthetic().models
