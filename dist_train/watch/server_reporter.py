"""From the decisions of a parameter server to the lines that are written down and shown.

The reporter is told of every push once, and of everything that the referee decides about it; it makes a
training line when one is due, and the keys that the server modes add to summary.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from statistics import fmean

from dist_train.config.schema import Config
from dist_train.rules.decisions import Returned, Step
from dist_train.rules.messages import Push
from dist_train.rules.staleness import Staleness
from dist_train.rules.straggler import Streaks, straggler
from dist_train.rules.topology import groups
from dist_train.watch.course import Course, End, Standing, straggler_event
from dist_train.watch.member_course import MemberCourse
from dist_train.watch.records import StepTimes, TrainLine
from dist_train.watch.tally import Cause, Tally

PHASES = tuple(phase.name for phase in fields(StepTimes))


class Window:
    """What was applied since update ``step``: that of the last line, of training or of validation."""

    def __init__(self, start: float, before: Tally, step: int) -> None:
        self.start = start
        self.step = step
        self.waiting_before = dict(before.waiting)
        self.staleness_before = before.staleness.copy()
        self.loss = 0.0
        self.samples = 0
        self.pushes = 0
        # Of a codistilled replica: each gradient's mean agreement, and the age of its oldest teacher.
        self.agreements: list[float] = []
        self.teacher_age = 0
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def pushed(self, push: Push) -> None:
        """Count a gradient."""
        self.pushes += 1
        for phase in PHASES:
            self.seconds[phase] += push.seconds.get(phase, 0.0)
        at = push.version.number
        ages = [at - version for _, version in push.teachers]
        if push.agreement is not None and push.teachers:
            self.agreements.append(push.agreement)
            self.teacher_age = max([self.teacher_age, *ages])

    def waited(self, tally: Tally) -> dict[str, float]:
        """Return the seconds that members spent waiting, by cause, now that the run has come to ``tally``."""
        return {cause: seconds - self.waiting_before[cause] for cause, seconds in tally.waiting.items()}

    def extras(self, tally: Tally) -> dict[str, float]:
        """Return what the server modes add to a line; counts are those of the whole run."""
        staleness = tally.staleness.since(self.staleness_before)
        counts = {name: count for name, count in tally.counts.items() if name != "lost_updates"}
        return {
            "staleness": staleness.mean,
            "staleness_p99": staleness.p99,
            **counts,
            **{f"waiting_{cause}": seconds for cause, seconds in self.waited(tally).items()},
            **self._lessons(),
        }

    def _lessons(self) -> dict[str, float]:
        if not self.agreements:
            return {}
        return {"agreement": fmean(self.agreements), "teacher_age": float(self.teacher_age)}

    def times(self, waited: float) -> StepTimes:
        """Return the mean seconds of a gradient by phase; waiting for the server is communication."""
        pushes = max(1, self.pushes)
        mean = StepTimes(**{phase: seconds / pushes for phase, seconds in self.seconds.items()})
        return replace(mean, communication=mean.communication + waited / pushes)


class ServerReporter:
    """Tells a logbook what the members of a parameter server do, from update ``step`` on.

    ``tally`` goes on from a checkpoint's; whoever saves the next one finds the counts in it. ``clock``
    gives seconds.
    """

    def __init__(
        self,
        course: Course,
        config: Config,
        tally: Tally,
        step: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tally = tally
        self._course = course
        self._config = config
        self._clock = clock
        cut = groups(course.workers, config.parallel.group_size)
        self._members = [MemberCourse(named(ranks), clock()) for ranks in cut]
        self._groups = cut
        self._window = Window(clock(), tally, step)
        self._since_validation = Window(clock(), tally, step)
        self._streaks = Streaks()
        self._rate = 0.0
        self._memory_mb = 0.0
        self._gradient_norm: float | None = None
        self._samples = 0
        self._training_s = 0.0

    @property
    def has_validated(self) -> bool:
        return self._course.has_validated

    def pushed(self, push: Push) -> None:
        """Count a gradient that a member computed, whatever becomes of it; never one push twice."""
        self.tally.computed += 1
        self._window.pushed(push)
        self._memory_mb = max(self._memory_mb, push.memory_mb)
        self._members[push.member].pushed(push.samples, step_times(push.seconds), self._clock())
        self.waited(push.member, "data", push.seconds.get("data", 0.0))

    def waited(self, member: int, cause: Cause, seconds: float) -> None:
        """Count seconds that a member spent waiting."""
        self.tally.waiting[cause] += seconds
        self._members[member].waiting_s += seconds

    def applied(self, step: Step) -> None:
        """Report an update and the gradients in it."""
        window = self._window
        window.samples += step.samples
        self._rate = step.made_with.rate
        for each in step.contributions:
            push = each.push
            self.tally.applied += 1
            self.tally.staleness.add(each.staleness)
            self._members[push.member].staleness.add(each.staleness)
            window.loss += push.loss
            if push.gradient_norm is not None:
                self._gradient_norm = push.gradient_norm

    def returned(self, lease: Returned) -> None:
        """Report a lease that goes back to be dealt again, and why."""
        self.tally.requeued += 1
        if lease.outcome == "dropped":
            self.tally.dropped += 1
            self._members[lease.member].dropped += 1
        elif lease.outcome == "refused":
            self.tally.refused += 1
        elif lease.outcome == "ended":
            # Its successor is not as slow as the last gradient of a process that was about to end.
            self._members[lease.member].forget_times()

    def blamed(self, member: int, push: Push | None) -> str:
        """Name the workers of a gradient that is not finite and, of a group, those whose loss was not."""
        ranks = self._groups[member]
        guilty = [] if push is None or len(ranks) == 1 else [ranks[number] for number in push.not_finite]
        if not guilty:
            return called(ranks)
        numbers = ", ".join(map(str, guilty))
        return f"{called(ranks)} (the loss of worker{'s' if len(guilty) > 1 else ''} {numbers})"

    def rolled_back(self, lost_updates: int) -> None:
        """Report updates that were lost with a shard."""
        self.tally.lost_updates += lost_updates

    def logged(self, at: Standing) -> None:
        """Write a training line of what happened since the one before; nothing where nothing did."""
        if not self._window.samples:
            return
        now = self._clock()
        self._samples += self._window.samples
        self._training_s += now - self._window.start
        self._course.book.train(self._train_line(at, now))
        self._window = Window(now, self.tally, at.step)
        self._name_stragglers(at.step)

    def validated(self, at: Standing, metrics: Mapping[str, float], seconds: float) -> None:
        """Report a validation, and how stale the gradients were since the one before."""
        window = self._since_validation
        self._course.validated(at, metrics, seconds, window.extras(self.tally))
        self._write_histogram(at.step, window.step, self.tally.staleness.since(window.staleness_before))
        self._since_validation = Window(self._clock(), self.tally, at.step)

    def finish(self, at: Standing, end: End) -> None:
        """Report what is left to report, and write and show the summary.

        ``end.extras`` are added to those of the tally: the ledger, and the choice of backups.
        """
        self.logged(at)
        self._write_histogram(at.step, 0, self.tally.staleness)
        samples_per_s = self._samples / self._training_s if self._training_s else 0.0
        extras = {**self.tally.record(), **end.extras}
        self._course.finish(at, samples_per_s, replace(end, extras=extras))

    def _write_histogram(self, step: int, since: int, staleness: Staleness) -> None:
        event = {"event": "staleness", "step": step, "since_step": since, "gradients": staleness.to_json()}
        self._course.book.event(event)

    def _train_line(self, at: Standing, now: float) -> TrainLine:
        window, tally = self._window, self.tally
        seconds = max(now - window.start, 1e-9)
        waited = window.waited(tally)
        times = window.times(sum(waited.values()) - waited["data"])
        own = [member.times.own for member in self._members]
        return TrainLine(
            step=at.step,
            samples=at.samples,
            epoch=at.epoch,
            wall_s=self._course.wall_s,
            loss=window.loss / window.samples,
            lr=self._rate,
            samples_per_s=window.samples / seconds,
            samples_per_s_per_worker=window.samples / seconds / self._course.workers,
            data_wait=times.data / max(times.total, 1e-9),
            times=times,
            memory_mb=self._memory_mb,
            slowest_rank=own.index(max(own)) * self._config.parallel.group_size if len(own) > 1 else None,
            grad_norm=self._gradient_norm,
            replica=self._course.replica,
            extras=window.extras(tally),
            workers=tuple(member.figures(now, seconds) for member in self._members),
        )

    def _name_stragglers(self, step: int) -> None:
        times = [member.times for member in self._members]
        slow = self._streaks.after(straggler(times, self._config.logging.straggler_ratio))
        if slow is not None:
            ranks, own = self._groups[slow.rank], times[slow.rank]
            who = f"{called(ranks)} {'are' if len(ranks) > 1 else 'is'}"
            first = replace(slow, rank=slow.rank * self._config.parallel.group_size)
            self._course.book.event(straggler_event(first, who, own, step))


def named(ranks: list[int]) -> str:
    """Name a group by its workers: "3", or "6-7"."""
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def called(ranks: list[int]) -> str:
    """Name a group in a sentence: "worker 3", or "workers 6-7"."""
    return f"worker{'s' if len(ranks) > 1 else ''} {named(ranks)}"


def step_times(seconds: Mapping[str, float]) -> StepTimes:
    return StepTimes(**{phase: seconds.get(phase, 0.0) for phase in PHASES})
