"""The parameter server in one process: members take turns in an order that is set, and never race.

Every member is a thread, and exactly one thread runs at a time: the one that was handed the baton. A member
hands it back before each message, as *about to speak*, and after it, as *waiting* or, once answered, *about
to go on*: whatever lies between two messages (reading, computing) is one move. Who moves next is a schedule's
choice, and so is every staleness. The referee decides as in a real run; its shards obey at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from dist_train.errors import TrainingError
from dist_train.exchange.areas import held, held_bytes
from dist_train.exchange.baton import Move, Runner, Schedule
from dist_train.exchange.deposits import Deposit, Deposits
from dist_train.exchange.segments import Segment
from dist_train.exchange.server import MemberMemory, Sizes, Welcome
from dist_train.rules.decisions import Action, Answer, Fail, Milestone, Step, Take
from dist_train.rules.messages import Measured, Push, Reply, Version
from dist_train.rules.referee import Referee
from dist_train.rules.schedule import Scheduled
from dist_train.rules.terms import Start

# A member that joins says how many leases keep it busy.
Message = int | Push | Measured


class Deadlock(TrainingError):
    """Nobody can move, and not all members have ended."""


class Held(Protocol):
    """A shard's slice of the newest parameters."""

    @property
    def parameters(self) -> Tensor: ...


class Shard(Protocol):
    """One slice of the parameters, and the optimizer that trains it (core/shard.py)."""

    def take(
        self,
        member: int,
        gradient: Tensor,
        weight: float,
        base: Tensor | None = None,
        borrow: bool = False,
        scale: float = 1.0,
    ) -> None: ...

    def step(self, version: int, made_with: Scheduled) -> None: ...

    def state(self) -> Held: ...


class Statistics(Protocol):
    """What the server keeps of its members: their buffers, and with local steps what they keep for themselves
    (core/server_state.py)."""

    statistics: list[Tensor]
    inner: dict[int, Deposit]

    @property
    def kept_vectors(self) -> int: ...

    @property
    def needs_base(self) -> bool: ...

    def mean_statistics(self) -> Tensor: ...


class Seat:
    """One process of a member, on a thread of its own: its way to the server (``exchange.server.Server``)."""

    def __init__(
        self, twin: Twin, member: int, incarnation: int, memory: MemberMemory, body: Callable[[Seat], None]
    ) -> None:
        self.memory = memory
        self.member = member
        self.incarnation = incarnation
        # What it says next, or said last.
        self.message: Message = 1
        # Its message was brought to the referee and is not answered.
        self.waits = False
        self._reply: Reply | None = None
        self._twin = twin
        self.runner = Runner(f"member {member}", lambda: body(self))

    @property
    def key(self) -> tuple[int, int, int]:
        """What names its message."""
        sequence = 0 if isinstance(self.message, int) else self.message.sequence
        return self.member, self.incarnation, sequence

    @property
    def reads_in_place(self) -> bool:
        return False

    def enlist(self, sizes: Sizes) -> Welcome:
        del sizes
        return self._twin.welcome(self)

    def join(self, ahead: int) -> Reply:
        return self._speak(ahead)

    def push(self, push: Push) -> Reply:
        return self._speak(push)

    def measured(self, measured: Measured) -> Reply:
        return self._speak(measured)

    def read(self, at_least: Version, into: Tensor) -> Version:
        version = self._twin.read(into)
        if version < at_least:
            raise TrainingError(f"member {self.member} was promised {at_least}, but the newest is {version}")
        return version

    def read_in_place(self, at_least: Version) -> tuple[Version, Tensor]:
        raise AssertionError(f"the twin's shards have no memory that stays, not for {at_least} either")

    def read_exactly(self, version: Version, into: Tensor) -> bool:
        return self._twin.read(into) == version

    def read_held(self, parameters: Tensor, statistics: Tensor) -> None:
        parameters.copy_(self._twin.held[0])
        statistics.copy_(self._twin.held[1])

    @property
    def goes_on(self) -> bool:
        """Whether it was answered, and has not gone on since."""
        return self._reply is not None

    def hear(self, reply: Reply) -> None:
        self._reply, self.waits = reply, False

    def _speak(self, message: Message) -> Reply:
        self.message = message
        self.runner.hand_back()
        self.waits = True
        self._twin.deliver(self)
        self.runner.hand_back()
        return self._heard()

    def _heard(self) -> Reply:
        reply, self._reply = self._reply, None
        assert reply is not None
        return reply


class Twin:
    """The server: a referee, shards of the slices ``parts``, and what it keeps of the members' buffers."""

    def __init__(
        self, referee: Referee, shards: Sequence[Shard], parts: Sequence[range], kept: Statistics, seed: int
    ) -> None:
        self.referee = referee
        # Every decision, in order.
        self.decisions: list[Action] = []
        self.version = referee.admission.version
        # Called at every milestone, once the shards have come to it.
        self.keep: Callable[[Milestone], None] = lambda milestone: None
        self._shards = list(zip(shards, (slice(part.start, part.stop) for part in parts), strict=True))
        self._kept = kept
        self.deposits = Deposits()
        self._seed = seed
        self._size, self._statistics = parts[-1].stop, kept.statistics[0].numel()
        self._seats: dict[int, Seat] = {}
        self._processes: dict[tuple[int, int], Seat] = {}
        self._answers: dict[tuple[int, int, int], Reply] = {}
        self.held_memory = Segment.create(held_bytes(self._size, self._statistics))
        self.held = held(self.held_memory, self._size, self._statistics)
        self._segments = [self.held_memory]

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *_: object) -> None:
        """End all members, and let go of the memory."""
        for seat in self._processes.values():
            seat.runner.end()
        for segment in self._segments:
            segment.close()

    # -- members ---------------------------------------------------------------------------------------

    def seat(self, member: int, body: Callable[[Seat], None]) -> Seat:
        """Begin a process of a member, the successor of the one before; it does ``body`` when it may move."""
        incarnation = self._seats[member].incarnation + 1 if member in self._seats else 0
        sizes = self._size, self._statistics, self._kept.kept_vectors, self._kept.needs_base
        segment = Segment.create(MemberMemory.bytes(*sizes))
        self._segments.append(segment)
        seat = Seat(self, member, incarnation, MemberMemory(segment, *sizes), body)
        self._seats[member] = self._processes[(member, incarnation)] = seat
        return seat

    @property
    def moves(self) -> list[Move]:
        """What is possible now, in the order of members."""
        return [
            Move(member, seat.goes_on)
            for member, seat in sorted(self._seats.items())
            if not (seat.waits or seat.runner.done)
        ]

    def go(self, schedule: Schedule, until: Callable[[], bool] = lambda: False) -> None:
        """Let members move as ``schedule`` says until all have ended, or ``until`` is true between two moves.

        Raises what a member raises, and Deadlock when nobody can move.
        """
        while not until():
            moves = self.moves
            if not moves:
                self._check_all_ended()
                return
            self._seats[schedule(moves).member].runner.move()

    def _check_all_ended(self) -> None:
        waiting = [seat for seat in self._seats.values() if seat.waits and not seat.runner.done]
        if waiting:
            asked = ", ".join(f"member {seat.member} for the answer to {seat.message}" for seat in waiting)
            made = len(self.referee.admission.gathered)
            raise Deadlock(
                f"nobody can move: {made} gradients make up the update after {self.version}; {asked}"
            )

    # -- what goes wrong -------------------------------------------------------------------------------

    def kill(self, member: int, noticed: bool = True) -> Seat:
        """End a member's process where it stands; ``noticed``: the referee hears of it at once."""
        seat = self._seats[member]
        seat.runner.end()
        if noticed:
            self._obey(self.referee.leave(member, seat.incarnation))
        return seat

    def deliver(self, seat: Seat) -> list[Action]:
        """Bring a seat's message to the referee: the first time, again, or when its process has ended."""
        actions = self._send(seat)
        self._obey(actions)
        self._tell(seat)
        return actions

    def roll_back(self, to: Start) -> None:
        """Go on from an earlier state, which the shards have been given already."""
        self.version = Version(self.version.era + 1, to.updates)
        self._obey(self.referee.roll_back(to))

    def stop(self) -> None:
        """Interrupt the run."""
        self._obey(self.referee.stop())

    # -- the server's verbs ----------------------------------------------------------------------------

    def welcome(self, seat: Seat) -> Welcome:
        kept = self._kept
        scalars = self.deposits.hand_over(seat.member, seat.memory, kept.inner.get(seat.member))
        return Welcome(self._seed, kept.statistics[seat.member].clone(), scalars)

    def read(self, into: Tensor) -> Version:
        """Copy the newest parameters, and say which they are."""
        for shard, part in self._shards:
            into[part].copy_(shard.state().parameters)
        return self.version

    def _send(self, seat: Seat) -> list[Action]:
        match seat.message:
            case Push() as push:
                return self.referee.push(push)
            case Measured() as measured:
                return self.referee.measured(measured)
            case int() as ahead:
                actions = self.referee.join(seat.member, seat.incarnation, ahead)
                all_are_there = len(self.referee.admission.live) == len(self._seats)
                return [*actions, *(self.referee.open() if all_are_there else [])]

    def _tell(self, seat: Seat) -> None:
        if seat.waits and seat.key in self._answers:
            seat.hear(self._answers[seat.key])

    # -- decisions -------------------------------------------------------------------------------------

    def _obey(self, actions: Sequence[Action]) -> None:
        """Carry decisions out, and those that follow from them, in their order."""
        waiting = deque(actions)
        while waiting:
            action = waiting.popleft()
            self.decisions.append(action)
            waiting += self._one(action)

    def _one(self, action: Action) -> list[Action]:
        match action:
            case Take(push=push):
                self._take(action)
                if not self.referee.terms.rule.read_own:
                    self._settle(push)
                return self.referee.taken(push)
            case Step(version=version):
                for shard, _ in self._shards:
                    shard.step(version.number, action.made_with)
                self.version = version
                if self.referee.terms.rule.read_own:
                    for each in action.contributions:
                        self._settle(each.push)
                return self.referee.applied(version)
            case Milestone():
                return self._milestone(action)
            case Answer():
                self._answers[(action.member, action.incarnation, action.sequence)] = action.reply
                self._tell(self._processes[(action.member, action.incarnation)])
            case Fail():
                raise TrainingError(action.why)
        return []

    def _take(self, take: Take) -> None:
        push = take.push
        memory = self._processes[(push.member, push.incarnation)].memory
        self._kept.statistics[push.member].copy_(memory.statistics)
        for shard, part in self._shards:
            gradient = memory.gradients[push.buffer][part]
            base = None if memory.parameters is None else memory.parameters[part]
            shard.take(push.member, gradient, take.weight, base, borrow=take.alone, scale=take.scale)

    def _settle(self, push: Push) -> None:
        self.deposits.settled(push, self._processes[(push.member, push.incarnation)].memory)

    def _milestone(self, milestone: Milestone) -> list[Action]:
        self.keep(milestone)
        if not milestone.hold:
            return []
        self.read(self.held[0])
        self.held[1].copy_(self._kept.mean_statistics())
        return self.referee.held(milestone.version.number)
