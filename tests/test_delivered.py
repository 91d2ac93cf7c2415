"""What a run directory holds, and in which words it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import Config, load_config
from dist_train.config.schema import Distill
from dist_train.delivered import find, find_teachers, refuse_other_task, script_of, unfollowable
from dist_train.errors import ConfigError

Make = Callable[..., Path]


def test_a_run_has_one_file_of_weights(done: Make) -> None:
    run_dir = done("run", 1, seed=7)
    found = find(run_dir)
    assert found.run_dir == run_dir
    assert found.config.seed == 7
    assert found.weights == (run_dir / "model.safetensors",)


def test_replicas_come_in_the_order_of_their_numbers(done: Make) -> None:
    run_dir = done("run", *range(11))
    assert [path.parent.name for path in find(run_dir).weights] == [f"replica_{n}" for n in range(11)]


def test_other_folders_are_no_replicas(done: Make) -> None:
    run_dir = done("run", 1)
    (run_dir / "checkpoints").mkdir()
    (run_dir / "replica_notes").mkdir()
    assert find(run_dir).weights == (run_dir / "model.safetensors",)


def test_a_directory_without_a_configuration_is_no_run(tmp_path: Path) -> None:
    for run_dir in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError) as refusal:
            find(run_dir)
        assert refusal.value.problems == (
            f"{run_dir}: no run directory, as config.yaml is missing; give the directory of a run",
        )


def test_a_configuration_that_cannot_be_read_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\nnonsense: 1\n")
    with pytest.raises(ConfigError, match=str(tmp_path / "config.yaml")):
        find(tmp_path)


def test_a_run_that_is_not_done_says_how_to_go_on(configured: Make) -> None:
    run_dir = configured("run")
    with pytest.raises(ConfigError) as refusal:
        find(run_dir)
    assert refusal.value.problems == (
        f"{run_dir}: no model.safetensors, so the run is not done; train it to its end: "
        f"dist-train run {run_dir}/config.yaml --run-dir {run_dir}",
    )


@pytest.mark.parametrize("lost", [0, 1])
def test_every_replica_must_have_delivered(done: Make, lost: int) -> None:
    run_dir = done("run", 1, 2, 3)
    (run_dir / f"replica_{lost}" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=f"no replica_{lost}/model.safetensors, so the run is not done"):
        find(run_dir)


def test_two_runs_are_compared_on_one_task(done: Make) -> None:
    digits, other = find(done("digits", 1, task="digits")), find(done("other", 1))
    with pytest.raises(
        ConfigError, match=r"other: its task is .*table_task.py:Table, and that of .* digits;"
    ):
        refuse_other_task(digits, other)
    refuse_other_task(digits, digits)


def test_one_file_may_be_written_in_two_ways(done: Make) -> None:
    file = Path(__file__).parent / "evaluate/table_task.py"
    roundabout = f"{file.parent}/../evaluate/./table_task.py:Table"
    refuse_other_task(find(done("a", 1)), find(done("b", 1, task=roundabout)))


def test_a_student_finds_its_teachers_in_order(done: Make) -> None:
    student = find(done("student", 1))
    assert find_teachers(student.config) == ()
    teachers = (done("first", 1, 2), done("second", 3))
    distill = Distill(teachers=tuple(map(str, teachers)))
    found = find_teachers(student.config.model_copy(update={"distill": distill}))
    assert [each.run_dir for each in found] == list(teachers)
    assert [len(each.weights) for each in found] == [2, 1]


def test_all_that_cannot_teach_is_named(done: Make, configured: Make, tmp_path: Path) -> None:
    names = (done("good", 1), configured("unfinished"), tmp_path / "none")
    config = find(names[0]).config.model_copy(update={"distill": Distill(teachers=tuple(map(str, names)))})
    with pytest.raises(ConfigError) as refusal:
        find_teachers(config)
    unfinished, none = refusal.value.problems
    assert unfinished.startswith(
        f"distill.teachers: {names[1]}: no model.safetensors, so the run is not done"
    )
    assert none.startswith(f"distill.teachers: {names[2]}: no run directory")


def follower(run_dir: Path, replicas: int = 2, **terms: Any) -> Config:
    parallel = {"workers": 2, "device": "cpu", "replicas": replicas}
    codistill = {"schedule": str(run_dir), "keep_posts": "all", "interval": 4, **terms}
    given = {"name": "again", "task": "digits", "optimizer": {"name": "sgd", "lr": 0.1}}
    train = {"epochs": 1, "batch_size": 100}
    return load_config({**given, "train": train, "parallel": parallel, "codistill": codistill})


@pytest.fixture
def followed(configured: Make) -> Callable[..., Path]:
    """Make the directory of a run of replicas, with the teachers that each changed."""

    def make(*changes: tuple[int, int, int], replicas: int = 2, **terms: Any) -> Path:
        parallel = {"workers": 2, "device": "cpu", "replicas": replicas}
        run_dir = configured("first", parallel=parallel, codistill={"interval": 4, **terms})
        for number in range(replicas):
            folder = run_dir / f"replica_{number}"
            folder.mkdir()
            lines = [
                {"event": "teacher", "step": step, "replica": replica, "version": version}
                for step, replica, version in changes
            ]
            (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run_dir

    return make


def test_a_run_like_it_can_be_followed(followed: Make) -> None:
    run_dir = followed((12, 1, 8))
    assert unfollowable(follower(run_dir)) == []
    assert script_of(run_dir, 0, (1,)).changes == {12: ((1, 8),)}


def test_who_follows_nobody_has_no_problem(followed: Make) -> None:
    assert unfollowable(load_config(followed() / "config.yaml")) == []


@pytest.mark.parametrize(
    ("earlier", "now", "what"),
    [
        ({"replicas": 3}, {}, "parallel.replicas is 3 there and not 2"),
        (
            {"replicas": 4, "topology": "ring"},
            {"replicas": 4},
            "codistill.topology is ring there and not all",
        ),
        ({}, {"interval": 5}, "codistill.interval is 4 there and not 5"),
        ({}, {"burn_in": 5}, "codistill.burn_in is 0 there and not 5"),
        (
            {"exchange": "prediction", "data": "same"},
            {"data": "same"},
            "codistill.exchange is prediction there and not checkpoint",
        ),
    ],
)
def test_one_of_another_kind_is_refused_by_name(
    followed: Make, earlier: dict[str, Any], now: dict[str, Any], what: str
) -> None:
    run_dir = followed(**earlier)
    assert unfollowable(follower(run_dir, **now)) == [
        f"codistill.schedule: {run_dir}: {what}; follow a run of the same"
    ]


def test_one_whose_replicas_taught_nobody_is_refused(configured: Make) -> None:
    run_dir = configured("first", parallel={"workers": 2, "device": "cpu", "replicas": 2})
    (problem,) = unfollowable(follower(run_dir))
    assert problem.startswith(f"codistill.schedule: {run_dir}: its replicas taught nobody; ")


def test_one_that_is_not_there_or_has_no_events_is_refused(followed: Make, tmp_path: Path) -> None:
    (problem,) = unfollowable(follower(tmp_path / "none"))
    assert problem.endswith("no config.yaml there; give the directory of a run of several replicas")
    run_dir = followed()
    (run_dir / "replica_1" / "events.jsonl").unlink()
    (problem,) = unfollowable(follower(run_dir))
    assert problem.endswith("replica_1/events.jsonl is not there")


def test_a_configuration_that_cannot_be_read_is_refused(followed: Make) -> None:
    run_dir = followed()
    (run_dir / "config.yaml").write_text("nonsense: 1\n")
    problems = unfollowable(follower(run_dir))
    assert problems
    assert all(problem.startswith(f"codistill.schedule: {run_dir}: ") for problem in problems)


def test_teachers_that_a_replica_does_not_have_are_named(followed: Make) -> None:
    run_dir = followed((12, 1, 8), (16, 2, 8))
    with pytest.raises(
        ConfigError, match=r"replica 0 learns from 2, and here it does not; follow a run with"
    ):
        script_of(run_dir, 0, (1,))
    with pytest.raises(ConfigError, match=r"replica_5/events.jsonl is not there"):
        script_of(run_dir, 5, (1,))
