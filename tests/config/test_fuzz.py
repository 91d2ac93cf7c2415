"""Whatever is read, the answer is a Config or a ConfigError; a Config that was written reads back equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.config import dump_config, load_config
from dist_train.config.yaml_source import parse
from dist_train.errors import ConfigError

FUZZ = settings(deadline=None, max_examples=60)
KEYS = ["name", "task", "model", "train", "epochs", "steps", "batch_size", "optimizer", "lr", "momentum"]
KEYS += ["mode", "damping", "outer", "backups", "local_steps", "faults", "slow"]
KEYS += ["schedule", "warmup", "decay", "kind", "milestones", "betas", "parallel", "workers", "task_options"]
WORDS = ["sgd", "adam", "cosine", "step", "none", "gradual", "auto", "sync", "digits", "", "yes", "~", "<<"]
WORDS += ["async", "bounded", "inverse", "elastic", "delay_compensated"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)
keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=6), st.integers(-2, 2), st.none(), st.booleans())
trees = st.recursive(
    scalars,
    lambda child: st.lists(child, max_size=4) | st.dictionaries(keys, child, max_size=5),
    max_leaves=25,
)
pieces = [
    *KEYS,
    *WORDS,
    ": ",
    ":",
    "\n",
    "\n  ",
    "\n    ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "&a ",
    "*a",
    "!!int ",
]
pieces += [
    "!x ",
    "'",
    '"',
    "#",
    "|",
    ">",
    "? ",
    "---",
    "...",
    "%YAML 1.2",
    "%TAG",
    "\t",
    "\\U99999999",
    "\\x",
]
pieces += ["0x", "1_0", "1e-3", ".inf", "\ufeff", "\x00", "\x85", "\u2028", "é"]
yaml_pieces = st.lists(st.sampled_from(pieces), max_size=30).map("".join)


def attempt(source: Any, overrides: Sequence[str] = ()) -> None:
    """Load, accepting a refusal in lines; anything else that is raised fails the test."""
    try:
        load_config(source, overrides)
        return
    except ConfigError as error:
        problems = error.problems
    assert problems
    assert all(line and len(line.splitlines()) == 1 for line in problems)


@FUZZ
@given(st.dictionaries(keys, trees, max_size=8))
def test_any_mapping_is_read_or_refused(tree: dict[Any, Any]) -> None:
    attempt(tree)


@FUZZ
@given(tree=trees)
def test_any_tree_in_a_file_is_read_or_refused(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "tree.yaml"
    file.write_text(yaml.safe_dump(tree), "utf-8")
    attempt(file)


@FUZZ
@given(text=st.text(max_size=60) | yaml_pieces)
def test_any_text_is_read_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "text.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    attempt(file)


@FUZZ
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.yaml"
    file.write_bytes(content)
    attempt(file)


dotted_keys = st.lists(st.sampled_from(KEYS) | st.text(max_size=4), min_size=1, max_size=4).map(".".join)


@FUZZ
@given(
    overrides=st.lists(st.text(max_size=20) | st.builds("{}={}".format, dotted_keys, yaml_pieces), max_size=4)
)
def test_any_override_is_applied_or_refused(overrides: list[str]) -> None:
    attempt(
        {
            "name": "x",
            "task": "digits",
            "train": {"epochs": 1, "batch_size": 1},
            "optimizer": {"name": "sgd", "lr": 1},
        },
        overrides,
    )


positive_floats = st.floats(min_value=1e-300, max_value=1e300)
fractions = st.floats(min_value=0, max_value=1, exclude_max=True)
counts = st.integers(1, 10**30)
spans = st.one_of(
    st.fixed_dictionaries({"epochs": positive_floats}),
    st.fixed_dictionaries({"steps": counts}),
    st.fixed_dictionaries({"samples": counts}),
)
texts = st.text(max_size=30) | st.sampled_from(
    ["\x85", "yes", "1e3", "0o7", "1_0", "1:30", "2020-01-01", "<<", "=", "~"]
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda child: st.lists(child, max_size=3) | st.dictionaries(texts, child, max_size=3),
    max_leaves=8,
)
optimizers = st.one_of(
    st.builds(lambda lr, m: {"name": "sgd", "lr": lr, "momentum": m}, positive_floats, fractions),
    st.builds(
        lambda lr, b: {"name": "adam", "lr": lr, "betas": b},
        positive_floats,
        st.lists(fractions, min_size=2, max_size=2),
    ),
    st.builds(lambda lr: {"name": "lars", "lr": lr}, positive_floats),
)
warmups = st.just("none") | spans.map(lambda span: {"kind": "gradual", **span})
rising = st.lists(positive_floats, unique=True, max_size=5).map(sorted)
decays = st.one_of(
    st.sampled_from(["constant", "cosine"]),
    rising.map(lambda milestones: {"kind": "step", "milestones": milestones}),
    counts.map(lambda cycles: {"kind": "cosine_restarts", "cycles": cycles}),
)
trainings = spans.flatmap(lambda span: counts.map(lambda size: {**span, "batch_size": size}))
couplings = st.fixed_dictionaries(
    {"mode": st.just("async"), "workers": st.just(6)},
    optional={
        "damping": st.sampled_from(["none", "inverse", {"kind": "delay_compensated", "strength": 0}]),
        "aggregate": st.integers(1, 6),
        "server": st.fixed_dictionaries({"shards": counts}),
        "cluster": st.fixed_dictionaries(
            {}, optional={"address": texts.filter(bool), "wait_s": positive_floats}
        ),
    },
)
slow = st.dictionaries(st.integers(0, 5), st.floats(1, 1e6), max_size=3)
configs = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,9}\Z"),
        "task": texts,
        "train": trainings,
        "optimizer": optimizers,
    },
    optional={
        "task_options": st.dictionaries(texts, plain, max_size=3),
        "model": st.dictionaries(texts, plain, max_size=3).map(lambda options: {**options, "name": "mlp"}),
        "seed": st.integers(0, 2**63 - 1),
        "parallel": couplings,
        "faults": slow.map(lambda factors: {"slow": factors}),
        "schedule": st.fixed_dictionaries({"warmup": warmups, "decay": decays}, optional={"rewarm": spans}),
    },
)


@settings(deadline=None, max_examples=60)
@given(tree=configs)
def test_a_written_config_reads_back_equal(
    tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = load_config(tree)
    file: Path = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_bytes(dump_config(config).encode("utf-8"))
    assert load_config(file) == config
    assert dump_config(load_config(file)) == dump_config(config)


@settings(deadline=None, max_examples=60)
@given(value=st.integers() | st.floats(allow_nan=False) | texts)
def test_a_written_value_is_one_that_other_yaml_readers_read_alike(value: Any) -> None:
    config = load_config(
        {
            "name": "x",
            "task": "t",
            "task_options": {"value": value},
            "train": {"epochs": 1, "batch_size": 1},
            "optimizer": {"name": "sgd", "lr": 1},
        }
    )
    text = dump_config(config)
    assert parse(text, "text").tree["task_options"]["value"] == value
    assert yaml.safe_load(text)["task_options"]["value"] == value
