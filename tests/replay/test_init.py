"""A replay ends with the bits of the run, whatever the mode; where log and computation part, it says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import recorded_runs as recorded
import server_runs

from dist_train.errors import ConfigError
from dist_train.exchange.baton import seeded
from dist_train.replay import Different, replay
from dist_train.rules.teaching import replica_seed

ADAMW = {"name": "adamw", "lr": 0.01}
MOMENTUM = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
LOCAL = {"mode": "async", "local_steps": 3}
# Settings of parallel, and other sections.
MOVING = {
    "optimizer": MOMENTUM | {"weight_decay": 0.1},
    "schedule": {
        "decay": {"kind": "one_cycle", "momentum": [0.85, 0.95]},
        "weight_decay": {"milestones": [0.2, 0.6], "factors": [0.5, 0]},
    },
}
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "async": ({"mode": "async"}, {"optimizer": ADAMW}),
    "async, shards": ({"mode": "async", "server": {"shards": 3}}, {"optimizer": MOMENTUM}),
    "lars": ({"mode": "async", "server": {"shards": 2}}, {"optimizer": {"name": "lars", "lr": 0.1}}),
    "clipped, accumulated": ({"mode": "async"}, {"train": {"clip_norm": 0.5, "accumulate": 2}}),
    "softsync": ({"mode": "async", "aggregate": 2}, {"optimizer": MOMENTUM}),
    "damped": ({"mode": "async", "aggregate": 2, "damping": {"kind": "inverse"}}, {}),
    "damped, momentum": ({"mode": "async", "damping": {"kind": "inverse"}}, {"optimizer": MOMENTUM}),
    "damped, normalised": (
        {"mode": "async", "aggregate": 2, "damping": {"kind": "inverse"}},
        {"optimizer": ADAMW},
    ),
    "compensated": ({"mode": "async", "damping": {"kind": "delay_compensated", "variant": "constant"}}, {}),
    "adaptive": (
        {
            "mode": "async",
            "damping": {"kind": "delay_compensated", "variant": "adaptive"},
            "server": {"shards": 2},
        },
        {"optimizer": MOMENTUM},
    ),
    "backup": ({"mode": "backup", "backups": 1}, {"optimizer": MOMENTUM}),
    "bounded": ({"mode": "bounded", "max_staleness": 1}, {}),
    "in step": ({"mode": "bounded", "max_staleness": 0}, {"optimizer": ADAMW}),
    "downpour": ({"mode": "async", "fetch_every": 4, "push_every": 2}, {"optimizer": MOMENTUM}),
    "downpour, read often": ({"mode": "async", "fetch_every": 1, "push_every": 3}, {}),
    "downpour, out of step": ({"mode": "async", "fetch_every": 3, "push_every": 2}, {}),
    "average": (LOCAL, {"optimizer": MOMENTUM}),
    "diloco": (LOCAL | {"outer": {"kind": "nesterov"}}, {"optimizer": ADAMW}),
    "diloco, backup": (
        LOCAL | {"mode": "backup", "backups": 1, "outer": {"kind": "nesterov"}},
        {"optimizer": ADAMW},
    ),
    "elastic": (LOCAL | {"outer": {"kind": "elastic"}}, {"optimizer": MOMENTUM}),
    "moving settings": ({"mode": "async"}, MOVING),
    "moving settings, local steps": (LOCAL, MOVING),
}


@pytest.fixture
def make() -> Iterator[recorded.Make]:
    with server_runs.running() as made:
        yield made


Rewrite = Callable[[list[dict[str, Any]]], None]


def rewritten(run_dir: Path, change: Rewrite) -> None:
    """Change the log of a run."""
    file = run_dir / "events.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()]
    change(events)
    file.write_text("".join(json.dumps(event) + "\n" for event in events))


def without(kind: str) -> Rewrite:
    def change(events: list[dict[str, Any]]) -> None:
        events[:] = [event for event in events if event["event"] != kind]

    return change


class TestEveryMode:
    @pytest.mark.parametrize("mode", MODES)
    def test_is_replayed_to_the_bit(self, make: recorded.Make, tmp_path: Path, mode: str) -> None:
        parallel, sections = MODES[mode]
        validated = {"validation": {"every_steps": 3}}
        book = recorded.record(make, tmp_path, parallel, **validated | sections)
        line = replay(recorded.finished(book))
        updates = [event for event in book.events if event["event"] == "update"]
        assert line.startswith(f"{len(updates)} updates of ")
        assert f", {len(updates)} of them checked" in line
        assert line.endswith("model.safetensors, bit for bit")

    def test_the_runs_are_such_that_order_matters(self, make: recorded.Make, tmp_path: Path) -> None:
        """Gradients are stale and dropped, members read for validations, and their own state moves."""
        stale = recorded.record(make, tmp_path / "async", {"mode": "async"})
        recorded.finished(stale)
        assert max(stale.run.staleness) > 1
        late = recorded.record(make, tmp_path / "backup", {"mode": "backup", "backups": 1})
        recorded.finished(late)
        assert "dropped" in [event["event"] for event in late.events]

    def test_without_checksums_it_compares_losses_and_the_end(
        self, make: recorded.Make, tmp_path: Path
    ) -> None:
        book = recorded.record(make, tmp_path, {"mode": "async"}, train={"deterministic": False})
        line = replay(recorded.finished(book))
        assert "checked" not in line
        assert line.endswith("bit for bit")


class TestReplicas:
    @pytest.mark.parametrize("mode", ["async", "backup", "downpour, read often", "diloco", "elastic"])
    def test_each_is_replayed_with_the_teachers_that_it_had(
        self, make: recorded.Make, tmp_path: Path, mode: str
    ) -> None:
        books = self.codistilled(make, tmp_path, mode)
        for replica, book in enumerate(books):
            line = replay(recorded.finished(book, seed=replica_seed(5, replica)))
            assert line.endswith("bit for bit")
        for replica, book in enumerate(books):
            taught = [
                gradient["teachers"]
                for event in book.events
                if event["event"] == "update"
                for gradient in event["gradients"]
                if "teachers" in gradient
            ]
            assert {teacher for each in taught for teacher, _ in each} == {1 - replica}
            assert "teacher" in [event["event"] for event in book.events]

    def test_another_teacher_makes_another_run(self, make: recorded.Make, tmp_path: Path) -> None:
        run_dir = recorded.finished(self.codistilled(make, tmp_path, "async")[1])

        def untaught(events: list[dict[str, Any]]) -> None:
            for event in events:
                for gradient in event.get("gradients", ()):
                    gradient.pop("teachers", None)

        rewritten(run_dir, untaught)
        with pytest.raises(Different, match=r"the parameters of shard 0 differ|has a loss of"):
            replay(run_dir)

    def test_a_post_that_is_gone_is_named(self, make: recorded.Make, tmp_path: Path) -> None:
        run_dir = recorded.finished(self.codistilled(make, tmp_path, "async")[1])
        for post in (tmp_path / "board" / "replica_0").iterdir():
            post.unlink()
        with pytest.raises(ConfigError, match=r"set codistill.keep_posts to all before the run"):
            replay(run_dir)

    @staticmethod
    def codistilled(make: recorded.Make, folder: Path, mode: str) -> list[recorded.Book]:
        """Two replicas half-way through their training, each the other's teacher."""
        parallel, sections = MODES[mode]
        parallel = parallel | {"replicas": 2}
        terms = {"interval": 1, "keep_posts": "all", "data": "same"}
        (folder / "board").mkdir()
        books = []
        for replica in range(2):
            own = {"replica": replica, "directory": folder / f"replica_{replica}", "codistill": terms}
            books.append(recorded.record(make, own["directory"], parallel, 24, **own | sections))
        for update in (4, 8, 12):
            for book in books:
                book.run.go_to(update, seeded(update))
        return books


class TestWhatWentWrongInTheRun:
    @pytest.mark.parametrize("mode", ["async", "downpour", "diloco", "elastic"])
    def test_a_replaced_worker(self, make: recorded.Make, tmp_path: Path, mode: str) -> None:
        parallel, sections = MODES[mode]
        book = recorded.record(make, tmp_path, parallel, **sections)
        book.run.go_to(5, seeded(2))
        book.run.twin.kill(1)
        book.run.seat(1)
        replay(recorded.finished(book))
        assert [
            event
            for event in book.events
            if event["event"] == "update" and event["gradients"][0]["incarnation"]
        ]

    @pytest.mark.parametrize("mode", ["async", "softsync", "adaptive", "backup", "downpour", "diloco"])
    def test_lost_updates(self, make: recorded.Make, tmp_path: Path, mode: str) -> None:
        parallel, sections = MODES[mode]
        server = parallel.get("server", {}) | {"snapshot_every": 3}
        book = recorded.record(make, tmp_path, parallel | {"server": server}, **sections)
        book.run.go_to(8, seeded(3))
        book.rolled_back(6)
        line = replay(recorded.finished(book))
        made = sum(event["event"] == "update" for event in book.events)
        assert made > 12
        assert line.startswith(f"{made} updates")

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_a_gradient_that_waited_for_another_when_updates_were_lost(
        self, make: recorded.Make, tmp_path: Path, seed: int
    ) -> None:
        """Its member was told that it counts, and went on from what it had computed."""
        parallel = {"mode": "async", "aggregate": 3, "fetch_every": 4, "server": {"snapshot_every": 3}}
        book = recorded.record(make, tmp_path, parallel, optimizer=MOMENTUM)
        book.run.go(seeded(seed), lambda: book.run.outcomes.count("counted") == 8 * 3 + 2)
        assert book.run.twin.version.number == 8
        book.rolled_back(6)
        assert [event["event"] for event in book.events[-2:]] == ["void"] * 2
        replay(recorded.finished(book))

    def test_a_worker_lost_with_the_updates(self, make: recorded.Make, tmp_path: Path) -> None:
        """Its successor goes on from what was kept with the snapshot, not from what it left since."""
        parallel, sections = MODES["diloco"]
        server = {"snapshot_every": 3}
        book = recorded.record(make, tmp_path, parallel | {"server": server}, **sections)
        book.run.go_to(8, seeded(3))
        members = {each["member"] for event in book.events[-8:] for each in event.get("gradients", [])}
        book.rolled_back(6)
        for member in members:
            book.run.twin.kill(member)
            book.run.seat(member)
        replay(recorded.finished(book))

    def test_gradients_of_a_stateless_model_that_did_not_count_are_not_computed_again(
        self, make: recorded.Make, tmp_path: Path
    ) -> None:
        """Between two that counted, a member has dropped ones and parts of validations behind it."""
        parallel, sections = MODES["backup"]
        plain = {"task_options": {"dropout": 0.2, "size": 72}, "validation": {"every_steps": 2}}
        book = recorded.record(make, tmp_path, parallel, **sections | plain)
        line = replay(recorded.finished(book))
        assert [event for event in book.events if event["event"] == "dropped"]
        assert len(book.run.validated) == 6
        assert line.startswith("12 updates of 24 gradients made again")

    def test_a_gradient_that_holds_nan(self, make: recorded.Make, tmp_path: Path) -> None:
        book = recorded.record(make, tmp_path, {"mode": "async"})
        recorded.finished(book)

        def refused(events: list[dict[str, Any]]) -> None:
            first = next(event for event in events if event["event"] == "update")["gradients"][0]
            events.insert(1, first | {"event": "refused", "step": 0, "era": 0, "member": 2, "incarnation": 7})
            events[1]["loss"] = "NaN"

        rewritten(tmp_path, refused)
        with pytest.raises(Different, match=r"^after update 0: .* had nan in the run"):
            replay(tmp_path)


class TestResumed:
    def test_a_run_is_replayed_from_its_first_start(self, make: recorded.Make, tmp_path: Path) -> None:
        first = recorded.record(make, tmp_path, {"mode": "async"}, optimizer=ADAMW, steps=12)
        first.run.go_to(7, seeded(1))
        undone = len([event for event in first.events if event["event"] == "update"]) - 5
        checkpoint = self.saved_at(make, tmp_path, first)
        second = recorded.record(make, tmp_path, {"mode": "async"}, optimizer=ADAMW, origin=checkpoint)
        assert undone >= 0
        line = replay(recorded.finished(second, 4))
        assert line.startswith("12 updates")

    def saved_at(self, make: recorded.Make, run_dir: Path, book: recorded.Book) -> Path:
        """Save the state now, and then go on for a while: that is undone by who resumes."""
        path = book.run.save(run_dir)
        book.run.go_to(9, seeded(8))
        book.write()
        return path


class TestATamperedLog:
    @pytest.fixture
    def run_dir(self, make: recorded.Make, tmp_path: Path) -> Path:
        return recorded.finished(recorded.record(make, tmp_path, {"mode": "async"}, optimizer=MOMENTUM))

    def update(self, events: list[dict[str, Any]], step: int) -> dict[str, Any]:
        return next(event for event in events if event["event"] == "update" and event["step"] == step)

    def test_a_loss(self, run_dir: Path) -> None:
        rewritten(run_dir, lambda events: self.update(events, 5)["gradients"][0].update(loss=1.25))
        with pytest.raises(Different, match=r"^update 5: worker \d's gradient .* and had 1.25 in the run"):
            replay(run_dir)

    def test_a_lease(self, run_dir: Path) -> None:
        rewritten(run_dir, lambda events: self.update(events, 6)["gradients"][0].update(lease=[3, 8, 4]))
        with pytest.raises(Different, match=r"^update 6: .* epoch 3, places 8 to 11"):
            replay(run_dir)

    def test_a_rate(self, run_dir: Path) -> None:
        rewritten(run_dir, lambda events: self.update(events, 4).update(rate=0.1001))
        with pytest.raises(Different, match=r"^update 4: the parameters of shard 0 differ"):
            replay(run_dir)

    def test_a_rate_without_checksums_shows_in_a_later_loss(self, run_dir: Path) -> None:
        def change(events: list[dict[str, Any]]) -> None:
            without("check")(events)
            self.update(events, 4)["rate"] = 0.2

        rewritten(run_dir, change)
        with pytest.raises(Different, match=r"^update \d+: worker \d's gradient") as difference:
            replay(run_dir)
        assert int(str(difference.value).split()[1].rstrip(":")) > 4

    def test_the_last_rate_without_checksums_shows_in_the_weights(self, run_dir: Path) -> None:
        def change(events: list[dict[str, Any]]) -> None:
            without("check")(events)
            self.update(events, 12)["rate"] = 0.2

        rewritten(run_dir, change)
        with pytest.raises(
            Different, match=r"^after update 12: parameter .* differs from .*model.safetensors"
        ):
            replay(run_dir)

    def test_two_gradients_in_the_wrong_order(self, run_dir: Path) -> None:
        def swap(events: list[dict[str, Any]]) -> None:
            one, other = self.update(events, 7), self.update(events, 8)
            one["gradients"], other["gradients"] = other["gradients"], one["gradients"]

        rewritten(run_dir, swap)
        with pytest.raises(Different, match=r"^update 7: "):
            replay(run_dir)

    def test_a_missing_update(self, run_dir: Path) -> None:
        rewritten(run_dir, lambda events: events.remove(self.update(events, 3)))
        with pytest.raises(Different, match=r"^update 4 follows update 2 in the log"):
            replay(run_dir)


class TestARunThatCannotBeReplayed:
    @pytest.fixture
    def run_dir(self, make: recorded.Make, tmp_path: Path) -> Path:
        return recorded.finished(recorded.record(make, tmp_path, {"mode": "async"}, steps=2))

    def refused(self, run_dir: Path, why: str) -> None:
        with pytest.raises(ConfigError, match=why):
            replay(run_dir)

    def configured(self, run_dir: Path, old: str, new: str) -> None:
        file = run_dir / "config.yaml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    def test_no_run_directory(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "no run directory, as config.yaml is missing")

    def test_mode_sync(self, run_dir: Path) -> None:
        self.configured(run_dir, "mode: async", "mode: sync")
        self.refused(run_dir, "a run in mode sync")

    def test_on_gpus(self, run_dir: Path) -> None:
        self.configured(run_dir, "device: cpu", "device: auto")
        (run_dir / "env.json").write_text(json.dumps({"gpus": ["H200"]}))
        self.refused(run_dir, "it ran on GPUs")

    def test_no_events(self, run_dir: Path) -> None:
        (run_dir / "events.jsonl").unlink()
        self.refused(run_dir, "no events.jsonl")

    def test_no_start(self, run_dir: Path) -> None:
        rewritten(run_dir, without("server_start"))
        self.refused(run_dir, "no server_start")

    def test_a_line_that_a_server_does_not_write(self, run_dir: Path) -> None:
        rewritten(run_dir, lambda events: events[1].pop("rate"))
        self.refused(run_dir, "line 2: not as a server writes it")

    def test_an_origin_that_is_gone(self, run_dir: Path) -> None:
        rewritten(run_dir, lambda events: events[0].update(origin="/there/checkpoints/step_00000001", step=1))
        self.refused(run_dir, "/there/checkpoints/step_00000001: the checkpoint .* is there no more")

    def test_other_data(self, run_dir: Path) -> None:
        rewritten(run_dir, lambda events: events[0].update(train_size=73))
        self.refused(run_dir, "has 72 samples, and had 73 in the run")
