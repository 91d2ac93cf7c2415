"""Tests of what is refused before a run starts, and of the directory it starts in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dist_train import layout
from dist_train.config import Config, load_config
from dist_train.errors import ConfigError
from dist_train.runtime import opening
from dist_train.runtime.opening import (
    newest_step,
    open_run_directory,
    refuse_impossible,
    refuse_missing_origin,
    refuse_other_launcher,
    refuse_unsendable,
    with_workers,
    write_down,
)
from dist_train.watch.records import read
from dist_train.watch.summary import read_summary


def configured(**sections: Any) -> Config:
    given = {
        "name": "opening",
        "task": "digits",
        "train": {"epochs": 1, "batch_size": 8},
        "optimizer": {"name": "sgd", "lr": 0.1},
        **sections,
    }
    return load_config(given, ())


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the machine show a number of GPUs."""

    def show(count: int) -> None:
        monkeypatch.setattr(opening, "gpu_count", lambda variables: count)

    show(0)
    return show


class TestOrigin:
    def test_of_fewer_replicas_than_are_to_go_on_is_refused(self, tmp_path: Path) -> None:
        for number in range(2):
            (tmp_path / layout.replica_folder(number)).mkdir()
        for replicas in (1, 2):
            refuse_missing_origin(str(tmp_path), replicas)
        with pytest.raises(ConfigError, match="a run of 2 replicas, where 3 are to go on; set"):
            refuse_missing_origin(str(tmp_path), 3)

    def test_of_one_model_is_for_any_number_of_replicas(self, tmp_path: Path) -> None:
        refuse_missing_origin(str(tmp_path), 3)

    def test_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no such directory"):
            refuse_missing_origin(str(tmp_path / "nowhere"))


class TestWorkers:
    @pytest.mark.parametrize(("present", "started"), [(0, 1), (4, 4)])
    def test_auto_is_one_for_each_gpu_and_one_without(self, gpus: Any, present: int, started: int) -> None:
        gpus(present)
        assert refuse_impossible(configured(), {}).parallel.workers == started

    def test_a_number_is_taken_as_it_is(self, gpus: Any) -> None:
        assert refuse_impossible(configured(parallel={"workers": 3}), {}).parallel.workers == 3
        gpus(4)
        assert refuse_impossible(configured(parallel={"workers": 3}), {}).parallel.workers == 3

    def test_more_workers_than_gpus_are_refused(self, gpus: Any) -> None:
        gpus(2)
        with pytest.raises(ConfigError, match=r"parallel.workers: 3 workers but 2 GPUs"):
            refuse_impossible(configured(parallel={"workers": 3}), {})

    def test_on_the_cpu_gpus_do_not_count(self, gpus: Any) -> None:
        gpus(2)
        parallel = {"workers": 3, "device": "cpu"}
        assert refuse_impossible(configured(parallel=parallel), {}).parallel.workers == 3

    def test_cuda_without_a_gpu_is_refused(self, gpus: Any) -> None:
        with pytest.raises(ConfigError, match=r"parallel.device: cuda, but this machine shows no GPU"):
            refuse_impossible(configured(parallel={"device": "cuda"}), {})

    def test_all_problems_are_told_at_once(self, gpus: Any) -> None:
        config = configured(task="digit", parallel={"device": "cuda"})
        with pytest.raises(ConfigError) as refusal:
            refuse_impossible(config, {})
        task, device = refusal.value.problems
        assert task.startswith("task: unknown task 'digit'")
        assert device.startswith("parallel.device: ")

    def test_the_number_started_replaces_the_one_configured(self) -> None:
        config = configured(parallel={"workers": 2})
        assert with_workers(config, 8).parallel.workers == 8
        assert config.parallel.workers == 2


class TestServerModes:
    def test_workers_that_are_counted_here_must_suit_the_mode(self, gpus: Any) -> None:
        config = configured(parallel={"mode": "backup", "backups": 2})
        gpus(3)
        assert refuse_impossible(config, {}).parallel.workers == 3
        gpus(2)
        with pytest.raises(ConfigError, match=r"parallel.backups: 2 of 2 groups .* give at most 1"):
            refuse_impossible(config, {})

    def test_groups_must_fit_into_the_workers_that_are_counted(self, gpus: Any) -> None:
        gpus(3)
        with pytest.raises(ConfigError, match=r"parallel.group_size: 3 workers cannot be cut"):
            refuse_impossible(configured(parallel={"mode": "async", "group_size": 2}), {})

    def test_what_this_machine_has_says_nothing_about_a_cluster(self, gpus: Any) -> None:
        here = {"mode": "async", "workers": 6, "device": "cuda"}
        there = {**here, "cluster": {"address": "host:6379"}}
        assert refuse_impossible(configured(parallel=there), {}).parallel.workers == 6
        gpus(2)
        assert refuse_impossible(configured(parallel=there), {}).parallel.workers == 6
        with pytest.raises(ConfigError, match=r"parallel.workers: 6 workers but 2 GPUs"):
            refuse_impossible(configured(parallel=here), {})

    def test_the_workers_of_a_cluster_are_not_counted_here(self, gpus: Any) -> None:
        parallel = {"mode": "async", "cluster": {"address": "auto"}}
        with pytest.raises(ConfigError, match=r"parallel.workers: auto .* give their number"):
            refuse_impossible(configured(parallel=parallel), {})

    def test_start_their_workers_themselves(self) -> None:
        refuse_other_launcher(configured(), "torchrun")
        with pytest.raises(ConfigError, match=r"parallel.mode: async starts .* torchrun started this"):
            refuse_other_launcher(configured(parallel={"mode": "async"}), "torchrun")


class TestWhatIsSentToACluster:
    def test_is_refused_where_no_cluster_could_run_it(self) -> None:
        refuse_unsendable(configured(parallel={"mode": "async", "workers": 2}))
        with pytest.raises(ConfigError, match=r"parallel.mode: mode sync does not run on Ray; start it with"):
            refuse_unsendable(configured(parallel={"workers": 2}))
        with pytest.raises(ConfigError, match=r"parallel.workers: auto .* give their number"):
            refuse_unsendable(configured(parallel={"mode": "async"}))

    def test_names_task_and_model_that_are_known_everywhere(self) -> None:
        parallel = {"mode": "async", "workers": 2}
        for wrong, key in (
            ({"task": "digit"}, "task: unknown task 'digit'"),
            ({"task_options": {"share": 1}}, "task_options.share: unknown option"),
            ({"model": "gpt"}, "model.name: gpt does not fit"),
        ):
            with pytest.raises(ConfigError, match=f"^{key}"):
                refuse_unsendable(configured(parallel=parallel, **wrong))

    def test_may_need_data_and_code_that_are_not_here(self) -> None:
        parallel = {"mode": "async", "workers": 2}
        images = {"task": "images", "task_options": {"data_dir": "/nowhere/here"}}
        refuse_unsendable(configured(parallel=parallel, **images))
        refuse_unsendable(configured(parallel=parallel, task="nowhere.py:Own"))
        refuse_unsendable(configured(parallel=parallel, model="nowhere.py:Own"))


class TestTeachers:
    def test_that_are_no_runs_are_refused_with_all_else(self, gpus: Any, tmp_path: Path) -> None:
        distill = {"teachers": [str(tmp_path / "none")]}
        with pytest.raises(ConfigError) as refusal:
            refuse_impossible(configured(task="digit", distill=distill), {})
        task, teacher = refusal.value.problems
        assert task.startswith("task: unknown task 'digit'")
        assert teacher.startswith(f"distill.teachers: {tmp_path}/none: no run directory")

    def test_that_are_done_will_do(self, gpus: Any, done: Any) -> None:
        teacher = done("teacher", 1, task="digits")
        config = configured(distill={"teachers": [str(teacher)]})
        assert refuse_impossible(config, {}).distill == config.distill

    def test_a_run_cannot_teach_itself(self, done: Any) -> None:
        teacher = done("teacher", 1, task="digits")
        config = configured(distill={"teachers": [f"{teacher}/../teacher"]})
        before = (teacher / layout.CONFIG).read_text()
        with pytest.raises(ConfigError, match=r"is the student's own run directory; give another --run-dir"):
            open_run_directory(config, teacher, "auto", {})
        assert (teacher / layout.CONFIG).read_text() == before


class TestRunDirectory:
    def opened(self, run: Path, config: Config | None = None, resume: str = "auto") -> list[str]:
        return open_run_directory(config or configured(), run, resume, {"OMP_NUM_THREADS": "1", "TOKEN": "x"})

    def with_checkpoint(self, run: Path, step: int = 40) -> None:
        (run / layout.CHECKPOINTS / f"step_{step:08d}").mkdir(parents=True)

    def test_holds_configuration_and_environment(self, tmp_path: Path) -> None:
        assert self.opened(tmp_path) == []
        assert load_config(tmp_path / layout.CONFIG, ()) == configured()
        described = json.loads((tmp_path / layout.ENVIRONMENT).read_text())
        assert described["variables"] == {"OMP_NUM_THREADS": "1"}

    def test_what_changed_since_it_was_saved_is_told_and_written_down(self, tmp_path: Path) -> None:
        self.opened(tmp_path)
        self.with_checkpoint(tmp_path)
        (note,) = self.opened(tmp_path, configured(seed=7))
        assert note == "seed changed from 0 to 7 since this run was saved"
        (event,) = read(tmp_path / layout.EVENTS)
        assert (event["event"], event["note"]) == ("configuration_changed", note)
        assert load_config(tmp_path / layout.CONFIG, ()).seed == 7

    def test_nothing_has_changed_for_a_run_that_saved_nothing(self, tmp_path: Path) -> None:
        self.opened(tmp_path)
        assert self.opened(tmp_path, configured(seed=7)) == []

    def test_starting_anew_over_checkpoints_is_refused_and_changes_nothing(self, tmp_path: Path) -> None:
        self.opened(tmp_path)
        self.with_checkpoint(tmp_path)
        with pytest.raises(ConfigError, match=r"--resume none: .* holds checkpoints"):
            self.opened(tmp_path, configured(seed=7), resume="none")
        assert load_config(tmp_path / layout.CONFIG, ()).seed == 0

    def test_a_path_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--resume nowhere: no such directory"):
            self.opened(tmp_path, resume="nowhere")
        self.opened(tmp_path / "new", resume=str(tmp_path))

    def test_the_newest_step_is_the_highest_of_whole_checkpoints(self, tmp_path: Path) -> None:
        assert newest_step(tmp_path) == 0
        for step in (200, 1000, 400):
            self.with_checkpoint(tmp_path, step)
        (tmp_path / layout.CHECKPOINTS / "step_00002000.partial").mkdir()
        assert newest_step(tmp_path) == 1000


class TestEnd:
    def test_a_missing_or_broken_summary_reads_as_none(self, tmp_path: Path) -> None:
        assert read_summary(tmp_path / "summary.json") == {}
        (tmp_path / layout.SUMMARY).write_text("{")
        assert read_summary(tmp_path / "summary.json") == {}

    def test_events_are_appended_with_their_time(self, tmp_path: Path) -> None:
        for number in range(2):
            write_down(tmp_path, {"event": "x", "number": number})
        assert [event["number"] for event in read(tmp_path / layout.EVENTS)] == [0, 1]


def test_the_checks_ask_the_machine_they_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(opening, "gpu_count", lambda variables: asked.append(variables) or 0)
    refuse_impossible(configured(), {"CUDA_VISIBLE_DEVICES": "1"})
    assert asked == [{"CUDA_VISIBLE_DEVICES": "1"}]
