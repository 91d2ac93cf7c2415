"""``key.sub=value`` words replace what the source says, or are named with what is wrong about them."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest

from dist_train.config import Config, load_config
from dist_train.config.schema import (
    SGD,
    Adam,
    AdamW,
    ConstantDecay,
    CosineDecay,
    DelayCompensated,
    GradualWarmup,
    InverseDamping,
    Model,
    NesterovOuter,
    Server,
    Span,
)
from dist_train.errors import ConfigError

SOURCE = {
    "name": "x",
    "task": "digits",
    "task_options": {"epochs": 1},
    "train": {"epochs": 1, "batch_size": 2},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"warmup": {"kind": "gradual", "epochs": 5}},
    "validation": {"every_epochs": 1},
}

# The words, the path of one value, and what it then is.
APPLIED: list[tuple[list[str], str, Any]] = [
    (["seed=3"], "seed", 3),
    (["seed=3", "seed=4"], "seed", 4),
    ([" seed =3"], "seed", 3),
    (["recovery.grace_s=1e-3"], "recovery.grace_s", 0.001),
    (["data.loaders=2"], "data.loaders", 2),
    (["train.clip_norm=null"], "train.clip_norm", None),
    (["task=my/file.py:Task"], "task", "my/file.py:Task"),
    (["task='a=b'"], "task", "a=b"),
    (["task=''"], "task", ""),
    (["task_options.a.b=[1, {c: yes}]"], "task_options", {"epochs": 1, "a": {"b": [1, {"c": "yes"}]}}),
    (["task_options={a: 1}"], "task_options", {"a": 1}),
    (["task_options.steps=2"], "task_options", {"epochs": 1, "steps": 2}),
    (["model=mlp", "model.width=3"], "model", Model(name="mlp", width=3)),
    (["optimizer.name=adam", "optimizer.betas=[0.8, 0.9]"], "optimizer", Adam(lr=0.1, betas=(0.8, 0.9))),
    (["optimizer={name: adamw, lr: 1}"], "optimizer", AdamW(lr=1)),
    (["optimizer=sgd", "optimizer.lr=0.5"], "optimizer", SGD(lr=0.5)),
    (["schedule.decay=cosine"], "schedule.decay", CosineDecay()),
    (["schedule.decay.kind=constant"], "schedule.decay", ConstantDecay()),
    (["parallel.mode=async", "parallel.damping=inverse"], "parallel.damping", InverseDamping()),
    (
        ["parallel.mode=async", "parallel.damping.kind=delay_compensated", "parallel.damping.decay=0"],
        "parallel.damping",
        DelayCompensated(decay=0.0),
    ),
    (["parallel.mode=async", "parallel.outer=nesterov"], "parallel.outer", NesterovOuter()),
    (["parallel.server.shards=2"], "parallel.server", Server(shards=2)),
    (["faults.slow.4=5", "faults.slow.0=1.5"], "faults.slow", {4: 5.0, 0: 1.5}),
    (["faults.slow={4: 5}"], "faults.slow", {4: 5.0}),
    (["schedule.rewarm.steps=4"], "schedule.rewarm", Span(steps=4)),
    # A length in another unit takes the place of the file's.
    (["train.steps=5"], "train.length", Span(steps=5)),
    (["train.samples=5"], "train.length", Span(samples=5)),
    (["train.steps=null"], "train.length", Span(epochs=1)),
    (["train={steps: 5, batch_size: 3}"], "train.length", Span(steps=5)),
    (["schedule.warmup.steps=7"], "schedule.warmup", GradualWarmup(steps=7)),
    (["validation.every_steps=7"], "validation.every_epochs", None),
    (["parallel.global_batch=8"], "train.batch_size", None),
    (["parallel={global_batch: 8}"], "train.batch_size", None),
]


@pytest.mark.parametrize(("words", "path", "expected"), APPLIED)
def test_an_override_replaces_what_the_source_says(words: list[str], path: str, expected: Any) -> None:
    found = attrgetter(path)(load_config(SOURCE, words))
    assert found == expected
    assert type(found) is type(expected)


def test_the_batch_per_worker_takes_the_place_of_the_global_batch() -> None:
    source = {**SOURCE, "train": {"epochs": 1}, "parallel": {"global_batch": 8}}
    config = load_config(source, ["train.batch_size=4"])
    assert (config.train.batch_size, config.parallel.global_batch) == (4, None)


EXAMPLE = "write key.sub=value, for example train.epochs=5"
EMPTY = "the value is empty; write null for none, or '' for empty text"
BOTH = "give exactly one of train.batch_size (per worker) and parallel.global_batch (all workers)"
LENGTHS = "give exactly one of epochs, steps, samples"

# The words, and the lines that follow from them.
REFUSED: list[tuple[list[str], list[str]]] = [
    (
        ["train.batchsize=3"],
        ['override "train.batchsize=3": train.batchsize: unknown key; did you mean batch_size?'],
    ),
    (["trian.steps=3"], ['override "trian.steps=3": trian: unknown key; did you mean train?']),
    (["lr=3"], ['override "lr=3": lr: unknown key; did you mean optimizer.lr or parallel.outer.lr?']),
    (["seed=abc"], ["override \"seed=abc\": seed: expected a whole number of at least 0, found 'abc'"]),
    (["seed=null"], ['override "seed=null": seed: expected a whole number of at least 0, found null']),
    (["seed"], [f'override "seed": {EXAMPLE}']),
    (["--resume"], [f'override "--resume": {EXAMPLE}']),
    (["=3"], [f'override "=3": {EXAMPLE}']),
    (["train..steps=3"], [f'override "train..steps=3": {EXAMPLE}']),
    (["seed="], [f'override "seed=": seed: {EMPTY}']),
    (["seed= # nothing"], [f'override "seed= # nothing": seed: {EMPTY}']),
    (
        ["seed=[1"],
        [
            "override \"seed=[1\": not valid YAML: while parsing a flow sequence expected ',' or ']',"
            " but got '<stream end>'; close the brackets and put commas between the items"
        ],
    ),
    (
        ["data={loaders: 1, loaders: 2}"],
        ['override "data={loaders: 1, loaders: 2}": data.loaders: given twice; keep one of them'],
    ),
    (
        ["seed=!x 3"],
        ['override "seed=!x 3": seed: the tag !x is not allowed here; write a plain value without it'],
    ),
    (["name.a=3"], ["override \"name.a=3\": name is 'x', which has no keys; override name as a whole"]),
    (["model.width=3"], ['override "model.width=3": model.name: missing; give text']),
    (["optimizer=adam"], ['override "optimizer=adam": optimizer.lr: missing; give a number above 0']),
    (
        ["schedule.warmup.kind=none"],
        [
            "config: schedule.warmup.epochs: unknown key for none; its keys are kind"
            ' (override "schedule.warmup.kind=none" chose none;'
            " schedule.warmup={kind: none, ...} replaces it all)"
        ],
    ),
    (["train.epochs=2", "train.steps=3"], [f"config: train: {LENGTHS} (found epochs and steps)"]),
    (
        ["train={steps: 1, samples: 2, batch_size: 3}"],
        [
            'override "train={steps: 1, samples: 2, batch_size: 3}": train: '
            + f"{LENGTHS} (found steps and samples)"
        ],
    ),
    (["train.batch_size=1", "parallel.global_batch=2"], [f"config: {BOTH}"]),
    (["train.epochs=null"], [f"config: train: {LENGTHS} (found none)"]),
    (
        ["sede=1", "sad", "train.precision=f32"],
        [
            'override "sede=1": sede: unknown key; did you mean seed?',
            f'override "sad": {EXAMPLE}',
            "override \"train.precision=f32\": train.precision: 'f32' is not one of fp32, bf16;"
            " did you mean fp32?",
        ],
    ),
]


@pytest.mark.parametrize(("words", "expected"), REFUSED)
def test_a_wrong_override_is_named(words: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SOURCE, words)
    assert list(caught.value.problems) == expected


def test_what_an_override_replaced_is_not_named_after_the_file(read: Callable[..., Config]) -> None:
    text = "name: x\ntask: t\ntrain: {epochs: 1, batch_size: 2}\noptimizer: {name: sgd, lr: 1}\n"
    word = "train={epochs: -1, batch_size: 1}"
    with pytest.raises(ConfigError) as caught:
        read(text, word)
    assert list(caught.value.problems) == [
        f'override "{word}": train.epochs: expected a number above 0 or null, found -1'
    ]


def test_an_override_makes_the_sections_it_needs() -> None:
    config: Config = load_config(
        {}, ["name=x", "task=t", "train.steps=1", "train.batch_size=2", "optimizer={name: sgd, lr: 1}"]
    )
    assert config.train.length == Span(steps=1)
