"""A Config is written whole, in the schema's order, and two Configs are told apart key by key."""

from __future__ import annotations

from typing import Any

import yaml

from dist_train.config import Config, differences, dump_config, load_config
from dist_train.config.writing import flatten

SOURCE: dict[str, Any] = {
    "name": "x",
    "task": "digits",
    "train": {"epochs": 1, "batch_size": 2},
    "optimizer": {"name": "sgd", "lr": 1e-5},
}


def load(**changes: Any) -> Config:
    return load_config({**SOURCE, **changes})


def test_keys_are_written_in_the_order_of_the_schema() -> None:
    reverse = dict(reversed(load_config(SOURCE).model_dump().items()))
    written = yaml.safe_load(dump_config(load_config(reverse)))
    assert list(written) == list(Config.model_fields)


def test_the_tag_of_a_section_is_written_first() -> None:
    written = yaml.safe_load(dump_config(load(schedule={"warmup": {"epochs": 1, "kind": "gradual"}})))
    assert next(iter(written["optimizer"])) == "name"
    assert next(iter(written["schedule"]["warmup"])) == "kind"


def test_every_default_is_written() -> None:
    written = yaml.safe_load(dump_config(load()))
    assert written["recovery"] == load().recovery.model_dump()
    assert written["optimizer"]["lr"] == 1e-5


def test_text_that_looks_like_something_else_is_quoted() -> None:
    words = [
        "1e3",
        "yes",
        "null",
        "0o7",
        "1_0",
        "1:30",
        "2026-01-01",
        "<<",
        "",
        "a\nb",
        "a\x85b",
        "a: b",
        "*a",
    ]
    written = dump_config(load(task_options={"words": words}))
    assert yaml.safe_load(written)["task_options"]["words"] == words
    assert load_config(yaml.safe_load(written)).task_options["words"] == words


def test_a_value_used_twice_is_written_twice() -> None:
    shared = [1, 2]
    assert "*" not in dump_config(load(task_options={"a": shared, "b": shared}))


def test_equal_configs_have_no_differences() -> None:
    assert differences(load(), load()) == []


def test_differences_are_named_by_key_path_in_the_order_of_the_schema() -> None:
    old = load(task_options={"a": 1, "b": [1]})
    new = load(
        seed=3,
        task_options={"a": 1, "b": [2], "c": {"d": 4}},
        train={"steps": 5, "batch_size": 2},
    )
    assert differences(old, new) == [
        ("task_options.b", [1], [2]),
        ("task_options.c", None, {"d": 4}),
        ("seed", 0, 3),
        ("train.epochs", 1.0, None),
        ("train.steps", None, 5),
    ]


def test_another_variant_differs_in_its_tag_and_its_keys() -> None:
    found = differences(load(), load(optimizer={"name": "lars", "lr": 1e-5}))
    assert found == [
        ("optimizer.name", "sgd", "lars"),
        ("optimizer.trust", None, 0.001),
        ("optimizer.eps", None, 1e-9),
    ]


def test_every_setting_has_one_path() -> None:
    flat = flatten(load(task_options={"a": {"b": [1, "2"]}, "c": {}}))
    assert flat["task_options.a.b"] == "[1, '2']"
    assert flat["task_options.c"] == "{}"
    assert flat["optimizer.lr"] == "1e-05"
    assert flatten(load()) == flatten(load())
