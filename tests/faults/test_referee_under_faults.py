"""The referee under every fault at once, in any order, in each mode; see tests/rules/server_world.py."""

from __future__ import annotations

import unittest

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from dist_train.rules.referee import Start
from dist_train.rules.sampling import Position, Run
from tests.rules.server_world import Process, Setup, World


@st.composite
def setups(draw: st.DrawFn, mode: str) -> Setup:
    members = draw(st.integers(1, 5))
    most = {"bounded": 3, "backup": min(2, members - 1), "softsync": 4}.get(mode, 0)
    least = {"bounded": 1, "softsync": 2}.get(mode, 0)
    by_updates = draw(st.booleans())
    return Setup(
        mode,
        members,
        draw(st.integers(least, most)),
        size=draw(st.integers(20, 30)),
        share=draw(st.integers(1, 4)),
        epochs=draw(st.integers(1, 3)),
        updates=draw(st.integers(1, 8)) if by_updates else None,
        ahead=draw(st.integers(1, 3)),
        last_batch=draw(st.sampled_from(["keep", "drop"])),
        validate_steps=draw(st.sampled_from([None, 1, 2, 3])),
        validate_epochs=draw(st.integers(1, 2)),
    )


@st.composite
def starts(draw: st.DrawFn, setup: Setup) -> Start:
    """Where an earlier run was left: some of what it had drawn is not trained."""
    batch = setup.share * setup.quorum(setup.setting)
    offset = batch * draw(st.integers(0, setup.epoch // batch))
    cuts = sorted(draw(st.sets(st.integers(0, offset), max_size=4)))
    runs = [Run(0, first, end - first) for first, end in zip(cuts[::2], cuts[1::2], strict=False)]
    trained = offset - sum(run.count for run in runs)
    position = Position(0, offset) if offset < setup.epoch else Position(1, 0)
    return Start(draw(st.integers(0, 3)), trained, position, tuple(runs), draw(st.booleans()))


class Faults(RuleBasedStateMachine):
    """A run to which everything happens; from the last step on all goes well."""

    mode = ""

    @initialize(data=st.data(), absent=st.sets(st.integers(1, 4), max_size=2))
    def begin(self, data: st.DataObject, absent: set[int]) -> None:
        setup = data.draw(setups(self.mode))
        self.world = World(setup, data.draw(starts(setup)))
        for member in range(setup.members):
            if member not in absent:
                self.world.join(member)
        self.world.obey(self.world.referee.open())

    def one(self, number: int) -> Process | None:
        live = sorted(self.world.processes)
        return self.world.processes[live[number % len(live)]] if live else None

    @rule(order=st.lists(st.integers(0, 6), min_size=1, max_size=20))
    def training_goes_on(self, order: list[int]) -> None:
        for number in order:
            if number < 5 and (process := self.one(number)):
                self.world.advance(process)
            elif number >= 5 and self.world.commands:
                self.world.obey_one()

    @rule()
    def the_shards_catch_up(self) -> None:
        while self.world.commands:
            self.world.obey_one()

    @rule(number=st.integers(0, 4))
    def a_gradient_is_not_finite(self, number: int) -> None:
        if process := self.one(number):
            self.world.advance(process, finite=False)

    @rule(number=st.integers(0, 4))
    def a_member_crashes(self, number: int) -> None:
        if process := self.one(number):
            self.world.crash(process.member)

    @rule(member=st.integers(0, 4))
    def a_member_joins_or_is_replaced(self, member: int) -> None:
        self.world.join(member % self.world.setup.members)

    @rule(number=st.integers(0, 4), back=st.integers(0, 8))
    def a_message_is_overtaken(self, number: int, back: int) -> None:
        if (process := self.one(number)) and (overtaken := process.sent[:-1]):
            self.world.come_late(overtaken[-1 - back % len(overtaken)])

    @rule(number=st.integers(0, 99))
    def a_ghost_speaks(self, number: int) -> None:
        if ghosts := self.world.ghosts:
            self.world.come_late(ghosts[number % len(ghosts)])

    @rule(back=st.integers(0, 2))
    def updates_are_lost(self, back: int) -> None:
        if not self.world.told_to_stop:
            self.world.roll_back(self.world.snapshots[-1 - back % len(self.world.snapshots)])

    @rule(setting=st.integers(0, 2))
    @precondition(lambda self: self.mode == "backup")
    def the_number_of_backups_changes(self, setting: int) -> None:
        setup = self.world.setup
        # Without their last batch, epochs of another batch are of other samples.
        if setup.last_batch == "keep" and setting < setup.members:
            self.world.change(setting)

    @rule(chance=st.integers(0, 9))
    def training_is_interrupted(self, chance: int) -> None:
        if chance == 9:
            self.world.stop()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()
            if not self.world.stopping:
                assert self.world.is_over
                assert self.world.validated == self.world.due


def under_faults(mode: str) -> type[unittest.TestCase]:
    case: type[unittest.TestCase] = type(f"{mode.title()}Faults", (Faults,), {"mode": mode}).TestCase
    case.settings = settings(  # type: ignore[attr-defined]
        max_examples=60,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    return case


TestAsyncUnderFaults = under_faults("async")
TestSoftsyncUnderFaults = under_faults("softsync")
TestBoundedUnderFaults = under_faults("bounded")
TestBulkSynchronousUnderFaults = under_faults("bulk")
TestBackupUnderFaults = under_faults("backup")
