"""What a right configuration means, however it is written, and which sources cannot be read."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_train.config import Config, load_config
from dist_train.config.schema import SGD, Adam, CosineDecay, Model, NoWarmup, StepDecay
from dist_train.errors import ConfigError

Read = Callable[..., Config]
GOOD = """\
name: x
task: digits
train: {epochs: 1, batch_size: 2}
optimizer: {name: sgd, lr: 0.1}
"""


def lines_of(read: Callable[[], Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read()
    return list(caught.value.problems)


# What is added to a configuration, the path of one value, and what it must be.
MEANINGS: list[tuple[str, str, Any]] = [
    ("schedule: {warmup: none}", "schedule.warmup", NoWarmup()),
    ("schedule: {decay: cosine}", "schedule.decay", CosineDecay()),
    (
        "schedule: {decay: {kind: step, milestones: [3, 6.5]}}",
        "schedule.decay",
        StepDecay(milestones=(3, 6.5)),
    ),
    ("model: mlp", "model", Model(name="mlp")),
    (
        "model: {name: mlp, widths: [1, 2], a: {b: null}}",
        "model.options",
        {"widths": [1, 2], "a": {"b": None}},
    ),
    ("recovery: {grace_s: 1e-3}", "recovery.grace_s", 0.001),
    ("recovery: {grace_s: 1E5}", "recovery.grace_s", 100000.0),
    ("recovery: {grace_s: .5e-2}", "recovery.grace_s", 0.005),
    ("recovery: {grace_s: 3}", "recovery.grace_s", 3.0),
    ("seed: 1_000_000", "seed", 1_000_000),
    ("seed: 0x1F", "seed", 31),
    ("seed: 0o17", "seed", 15),
    ("seed: 010", "seed", 10),
    ("seed: 12345678901234567", "seed", 12345678901234567),
    ("seed: !!int '7'", "seed", 7),
    ("parallel: {max_staleness: null}", "parallel.max_staleness", None),
    ("task_options: {a: [1, {b: yes}], c: on}", "task_options", {"a": [1, {"b": "yes"}], "c": "on"}),
    ("task_options: {a: {3: 2026-01-01}}", "task_options", {"a": {3: "2026-01-01"}}),
    ("task_options: {<<: {a: 1, b: 2}, b: 3}", "task_options", {"a": 1, "b": 3}),
    ("task_options: {<<: [{a: 1}, {a: 2, b: 2}]}", "task_options", {"a": 1, "b": 2}),
    ("task_options: {a: &a {b: 1}, c: *a}", "task_options", {"a": {"b": 1}, "c": {"b": 1}}),
]


@pytest.mark.parametrize(("addition", "path", "expected"), MEANINGS)
def test_an_addition_means_what_it_says(read: Read, addition: str, path: str, expected: Any) -> None:
    found = attrgetter(path)(read(GOOD + addition + "\n"))
    assert found == expected
    assert type(found) is type(expected)


def test_a_key_beside_a_merge_is_not_given_twice(read: Read) -> None:
    config = read(GOOD + "validation: &v {every_steps: 5}\ncheckpoint: {<<: *v, every_steps: 7}\n")
    assert (config.validation.every_steps, config.checkpoint.every_steps) == (5, 7)


def test_a_problem_in_what_a_merge_brings_is_named_where_it_is_written(read: Read) -> None:
    text = GOOD + "validation: &v {every_steps: 5, every_epochs: null}\nlogging: {<<: *v}\n"
    assert lines_of(lambda: read(text)) == [
        "x.yaml:5:33: logging.every_epochs: unknown key; did you mean every_steps?"
    ]


def test_a_byte_order_mark_is_skipped(read: Read) -> None:
    assert read(b"\xef\xbb\xbf" + GOOD.encode()).name == "x"


def test_a_missing_file_names_the_one_that_was_meant(read: Read, tmp_path: Path) -> None:
    (tmp_path / "digits-sync.yaml").touch()
    assert lines_of(lambda: load_config("digit-sync.yaml")) == [
        "digit-sync.yaml: no such file; did you mean digits-sync.yaml?"
    ]
    assert lines_of(lambda: load_config("digits-sync")) == [
        "digits-sync: no such file; did you mean digits-sync.yaml?"
    ]
    assert lines_of(lambda: load_config("other/far.yaml")) == ["other/far.yaml: no such file"]
    assert lines_of(lambda: load_config("two\nlines")) == ["two\\nlines: no such file"]


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert lines_of(lambda: load_config(tmp_path)) == [
        f"{tmp_path}: this is a directory; give the YAML file in it"
    ]


def test_an_unreadable_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert lines_of(lambda: load_config("x.yaml")) == [
        "x.yaml: no permission to read this file; see its mode with ls -l"
    ]


def test_a_path_that_no_file_can_have_is_refused(read: Read) -> None:
    read(GOOD)
    assert lines_of(lambda: load_config("x.yaml/b")) == [
        "x.yaml/b: cannot be read: Not a directory; give the path of a YAML file"
    ]
    assert lines_of(lambda: load_config("a\0b"))[0].startswith("a\\x00b: cannot be read")


def test_a_file_that_is_no_configuration_is_refused_for_its_size(read: Read) -> None:
    assert lines_of(lambda: read(b"#" * 2**20 + b"\n")) == [
        "x.yaml: larger than 1 MiB; give the path of a YAML configuration"
    ]


MAPPING: dict[str, Any] = {
    "name": "x",
    "task": "digits",
    "train": {"epochs": 1, "batch_size": 2},
    "optimizer": {"name": "adam", "lr": 0.1, "betas": (0.8, 0.9)},
}


def test_a_mapping_is_read_like_a_file() -> None:
    config = load_config({**MAPPING, "schedule": {"decay": "cosine"}}, ["train.steps=3"])
    assert config.optimizer == Adam(lr=0.1, betas=(0.8, 0.9))
    assert config.schedule.decay == CosineDecay()
    assert (config.train.epochs, config.train.steps) == (None, 3)


def test_a_mapping_is_left_as_it_was() -> None:
    options = {"a": [1]}
    config = load_config({**MAPPING, "task_options": options}, ["task_options.a=2", "train.steps=3"])
    assert config.task_options == {"a": 2}
    assert options == {"a": [1]}
    assert MAPPING["train"] == {"epochs": 1, "batch_size": 2}


def test_problems_of_a_mapping_have_no_line() -> None:
    wrong = {**MAPPING, "seed": "3", "train": {"epochs": True, "batch_sise": 2}, 5: 6, "task": Path("x")}
    assert set(lines_of(lambda: load_config(wrong))) >= {
        "config: seed: expected a whole number of at least 0, found '3'; remove the quotes",
        "config: train.epochs: expected a number above 0 or null, found true",
        "config: train.batch_sise: unknown key; did you mean batch_size?",
        "config: task: expected text, a number, true, false, null, a list or a mapping,"
        f" found a value of type {type(Path('x')).__name__}",
    }


def test_a_mapping_that_contains_itself_is_refused() -> None:
    wrong: dict[str, Any] = dict(MAPPING)
    wrong["task_options"] = wrong
    assert "contains itself" in lines_of(lambda: load_config(wrong))[0]


def test_a_whole_number_without_end_is_refused() -> None:
    assert lines_of(lambda: load_config({**MAPPING, "seed": 10**5000})) == [
        "config: seed: a whole number of more than 1000 digits; write a smaller one"
    ]


def test_reading_does_not_import_torch() -> None:
    code = (
        "import sys; from dist_train.config import dump_config, load_config;"
        f"dump_config(load_config({MAPPING!r}));"
        "sys.exit(3 if {'torch', 'ray', 'numpy'} & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_leaves_the_shared_yaml_loader_alone(read: Read) -> None:
    read(GOOD)
    assert yaml.safe_load("[1e-3, yes]") == ["1e-3", True]


def test_the_optimizer_of_the_readme_is_read(read: Read) -> None:
    text = GOOD.replace("{name: sgd, lr: 0.1}", "{name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 1e-4}")
    assert read(text).optimizer == SGD(lr=0.1, momentum=0.9, weight_decay=0.0001)
