"""Tests of what --dry-run says about groups and the parameter server."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from dist_train.config import Config, load_config
from dist_train.config.schema import Server
from dist_train.errors import ConfigError
from dist_train.runtime import dry_run
from dist_train.runtime.dry_run import describe, group_rows, server_rows


def configured(parallel: dict[str, Any], **sections: Any) -> Config:
    given = {
        "name": "dry",
        "task": "digits",
        "model": {"name": "mlp", "hidden": [16]},
        "parallel": {"workers": 4, "device": "cpu", **parallel},
        "train": {"epochs": 2, "batch_size": 32},
        "optimizer": {"name": "sgd", "lr": 0.1},
        **sections,
    }
    return load_config(given, ())


class TestGroups:
    def test_are_listed(self) -> None:
        rows = group_rows(configured({"mode": "async", "group_size": 2}).parallel, 4)
        assert rows == {"group 0": "workers [0, 1]", "group 1": "workers [2, 3]"}

    def test_are_one_in_mode_sync(self) -> None:
        assert group_rows(configured({}).parallel, 3) == {"group 0": "workers [0, 1, 2]"}

    def test_are_named_by_the_first_and_the_last_where_they_are_many(self) -> None:
        rows = group_rows(configured({"mode": "async"}).parallel, 64)
        assert rows == {"group 0": "workers [0]", "...": "64 groups in all", "group 63": "workers [63]"}


class TestServer:
    # A million (2**20) parameters of four bytes are 4 MB.
    def test_says_how_large_its_shard_is(self) -> None:
        assert server_rows(Server(), 2**20) == {
            "server": "1 shard of 4 MB of parameters; 1,048,576 parameters in all"
        }

    def test_says_how_many_shards_and_copies_there_are(self) -> None:
        text = server_rows(Server(shards=2, copies=2), 2**20)["server"]
        assert text.startswith("2 shards of 2 MB of parameters, 2 copies of each")


class TestDescription:
    def test_counts_the_parameters_of_the_task_s_model(self) -> None:
        # 64 x 16 + 16 and 16 x 10 + 10.
        assert "1,210 parameters in all" in describe(configured({"mode": "async"}))

    def test_says_what_an_update_takes(self) -> None:
        text = describe(configured({"mode": "backup", "backups": 1}))
        assert "the first 3 of 4" in text
        assert "# group 3" in text

    def test_asks_for_no_model_in_mode_sync(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dry_run, "_model", lambda config: pytest.fail("a model was made"))
        assert "# group 0" in describe(configured({}))

    @pytest.mark.parametrize("mode", ["sync", "async"])
    def test_is_a_configuration(self, mode: str) -> None:
        config = configured({"mode": mode})
        assert load_config(yaml.safe_load(describe(config)), ()) == config

    def test_refuses_more_shards_than_the_model_can_be_cut_into(self) -> None:
        # One hidden unit: 64 + 1 weights and biases go into 80 elements, 10 + 10 into 32: 7 pieces of 16.
        smallest = {"model": {"name": "mlp", "hidden": [1]}}
        assert "# server" in describe(configured({"mode": "async", "server": {"shards": 7}}, **smallest))
        with pytest.raises(ConfigError, match=r"parallel\.server\.shards"):
            describe(configured({"mode": "async", "server": {"shards": 8}}, **smallest))

    def test_says_what_of_the_task_failed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(config: Config) -> int:
            raise RuntimeError("no such layer")

        monkeypatch.setattr(dry_run, "_model", fail)
        with pytest.raises(ConfigError, match="task digits: no model: RuntimeError: no such layer"):
            describe(configured({"mode": "async"}))


class TestStudent:
    def teacher(self, done: Any, **options: Any) -> dict[str, Any]:
        model = {"name": "mlp", "hidden": [32, 32]}
        return {"teachers": [str(done("teacher", 1, 2, task="digits", model=model, **options))]}

    def test_learns_from_larger_models(self, done: Any) -> None:
        distill = self.teacher(done)
        text = describe(configured({}, distill=distill))
        assert yaml.safe_load(text)["distill"]["teachers"] == distill["teachers"]
        assert "0.5 x the task's loss + 0.5 x agreement (kl, temperature 2)" in text

    def test_of_other_samples_is_refused(self, done: Any) -> None:
        distill = {"teachers": [str(done("teacher", 1))]}
        with pytest.raises(ConfigError, match=r"distill.teachers: .*teacher: its model cannot predict"):
            describe(configured({}, distill=distill))
