"""The records of a parameter server: every decision a line in events.jsonl, every sample accounted for.

``dist-train replay`` makes the run again from these lines (replay.py), so they hold all that it depends on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dist_train.rules.attendance import Attendance
from dist_train.rules.decisions import Answer, Returned, Step
from dist_train.rules.ledger import Ledger
from dist_train.rules.messages import Push, Version, Work
from dist_train.watch.course import End, Standing
from dist_train.watch.server_reporter import ServerReporter

Key = tuple[int, int, int]

WHY_RETURNED = {
    "dropped": "came too late",
    "refused": "holds NaN or infinity",
    "ended": "its worker is gone",
    "void": "its lease was withdrawn, or training is over",
}


@dataclass
class _Wait:
    """When a push came, when it was decided on, and when it was in the published parameters."""

    came: float
    decided: float | None = None
    applied: float | None = None


class ServerRecords:
    """Told of everything once, in order, by the coordinator."""

    def __init__(
        self,
        reporter: ServerReporter,
        event: Callable[[Mapping[str, Any]], None],
        ledger: Ledger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reporter = reporter
        self.ledger = ledger
        self._event = event
        self._clock = clock
        self._work: dict[int, Work] = {}
        self._gradients: dict[Key, dict[str, Any]] = {}
        # Those whose members were told that they count, before the update that they are for.
        self._promised: dict[Key, dict[str, Any]] = {}
        self._waits: dict[Key, _Wait] = {}
        self._deciding: list[tuple[Version, list[Key]]] = []
        # The version of each teacher that each member learns from.
        self._teachers: dict[tuple[int, int], int] = {}
        # Whom each member goes on without.
        self._without: dict[int, Attendance] = {}

    def pushed(self, push: Push) -> None:
        self.reporter.pushed(push)
        self._waits[key_of(push)] = _Wait(self._clock())
        self._taught_by(push)
        if (work := self._work.get(push.lease)) is not None:
            self._gradients[key_of(push)] = _gradient(push, work)

    def _taught_by(self, push: Push) -> None:
        """Write down that a member has changed over to another snapshot of a teacher."""
        for teacher, version in push.teachers:
            if self._teachers.get((push.member, teacher)) != version:
                self._teachers[push.member, teacher] = version
                own = {"step": push.version.number, "member": push.member}
                self._event({"event": "teacher", **own, "replica": teacher, "version": version})
        self._without_teachers(push)

    def _without_teachers(self, push: Push) -> None:
        """Write down which teachers a member goes on without from here on."""
        gone, back = self._without.setdefault(push.member, Attendance()).now(push.without)
        own = {"step": push.version.number, "member": push.member}
        for teacher in gone:
            text = (
                f"nothing newer of replica {teacher} could be taken up for too long (codistill.max_age): "
                f"member {push.member} goes on without it until it posts again"
            )
            self._event({"event": "teacher_gone", **own, "replica": teacher, "warning": text})
        for teacher in back:
            self._event({"event": "teacher_back", **own, "replica": teacher})

    def decided(self, step: Step) -> None:
        """Write an update down, with the gradients in it in their order."""
        self.reporter.applied(step)
        gradients = []
        for each in step.contributions:
            work = self._work.pop(each.push.lease)
            lease = work.lease
            self.ledger.trained(lease.epoch, lease.offset, lease.count)
            gradients.append(_gradient(each.push, work) | {"staleness": each.staleness})
            self._promised.pop(key_of(each.push), None)
            if (wait := self._waits.get(key_of(each.push))) is not None:
                wait.decided = self._clock()
        self._deciding.append((step.version, [key_of(each.push) for each in step.contributions]))
        self._event(
            {
                "event": "update",
                "step": step.version.number,
                "era": step.version.era,
                **asdict(step.made_with),
                "samples": step.samples,
                "gradients": gradients,
            }
        )

    def applied(self, version: Version) -> None:
        while self._deciding and self._deciding[0][0] <= version:
            for key in self._deciding.pop(0)[1]:
                if (wait := self._waits.get(key)) is not None:
                    wait.applied = self._clock()

    def returned(self, lease: Returned, push: Push | None) -> None:
        """Write down that samples go back to be drawn again, and which gradient did not count."""
        self.reporter.returned(lease)
        self._forget(lease)
        event: dict[str, Any] = {
            "event": lease.outcome if lease.outcome != "ended" else "requeued",
            "step": lease.version.number,
            "era": lease.version.era,
            "member": lease.member,
            "incarnation": lease.incarnation,
            "lease": [lease.run.epoch, lease.run.offset, lease.run.count],
            "reason": WHY_RETURNED.get(lease.outcome, lease.outcome),
        }
        if push is not None:
            event |= self._gradients.get(key_of(push), {})
        if lease.outcome == "refused":
            who = self.reporter.blamed(lease.member, push)
            event["warning"] = (
                f"{who}: the gradient holds NaN or infinity and was refused; its samples are drawn again"
            )
        self._event(event)

    def answered(self, answer: Answer) -> None:
        """Account for a member's wait, by cause; a gradient that will be in no update is written down."""
        for work in answer.reply.work:
            self._work[work.lease.number] = work
        key = answer.member, answer.incarnation, answer.sequence
        gradient = self._gradients.pop(key, None)
        if gradient is not None and answer.reply.outcome == "void":
            self._void(answer.reply.version, gradient)
        wait = self._waits.pop(key, None)
        if wait is None:
            return
        if gradient is not None and answer.reply.outcome == "counted" and wait.decided is None:
            self._promised[key] = gradient
        now, reporter, member = self._clock(), self.reporter, answer.member
        if wait.decided is None:
            reporter.waited(member, answer.waited_for, now - wait.came)
            return
        applied = now if wait.applied is None else wait.applied
        reporter.waited(member, "quorum", wait.decided - wait.came)
        reporter.waited(member, "server", applied - wait.decided)
        late = answer.waited_for if answer.waited_for in ("bound", "work") else "server"
        reporter.waited(member, late, now - applied)

    def rolled_back(self, lost: int, ledger: Ledger, event: Mapping[str, Any]) -> None:
        """Write down a return to an earlier version: its ledger is the true one again."""
        self.ledger = ledger
        self.reporter.rolled_back(lost)
        # Leases are withdrawn, but members may still push gradients of them.
        self._waits.clear()
        self._deciding.clear()
        self._event(event)
        for gradient in self._promised.values():
            self._void(Version(event["era"], event["step"]), gradient | {"told": "counted"})
        self._promised.clear()

    def _void(self, version: Version, gradient: Mapping[str, Any]) -> None:
        own = {"step": version.number, "era": version.era, "reason": WHY_RETURNED["void"]}
        self._event({"event": "void", **own, **gradient})

    def finish(self, at: Standing, end: End) -> None:
        self.reporter.finish(at, end)

    def _forget(self, lease: Returned) -> None:
        gone = [number for number, work in self._work.items() if _is(work, lease)]
        for number in gone:
            del self._work[number]


def key_of(push: Push) -> Key:
    return push.member, push.incarnation, push.sequence


def _is(work: Work, lease: Returned) -> bool:
    own, run = work.lease, lease.run
    return (own.epoch, own.offset, own.count) == (run.epoch, run.offset, run.count)


def _gradient(push: Push, work: Work) -> dict[str, Any]:
    lease = work.lease
    found: dict[str, Any] = {
        "member": push.member,
        "incarnation": push.incarnation,
        "sequence": push.sequence,
        "read": list(push.version),
        "lease": [lease.epoch, lease.offset, lease.count],
        "loss": push.loss,
    }
    if push.reads != (push.version,):
        found["reads"] = [list(version) for version in push.reads]
    if push.teachers:
        found["teachers"] = [list(teacher) for teacher in push.teachers]
    if work.own:
        found["own"] = [[own.rate, own.momentum, own.weight_decay] for own in work.own]
    return found
