"""A group of workers acts as one member of a parameter server: one speaks, all read the same version."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from dist_train.exchange.collective import Collective, mean_in_place
from dist_train.exchange.server import MemberMemory, Server, Sizes, Welcome
from dist_train.rules.messages import Lease, Measured, Push, Reply, ValidationPart, Version, Work
from dist_train.rules.schedule import Scheduled

# How often the workers of a group try to read one version, each by itself.
ATTEMPTS = 3


class GroupServer:
    """The server as one worker of a group sees it; every verb is called by all workers of the group.

    ``server`` is each worker's own way to it, whose speaking verbs only the leader uses; ``memory`` is the
    leader's for gradients, which each worker writes its share of, and the worker's own for its buffers.
    """

    def __init__(self, server: Server, collective: Collective, leads: bool) -> None:
        self._server = server
        self._collective = collective
        self._leads = leads
        self.memory: MemberMemory = server.memory.with_own_statistics()

    @property
    def reads_in_place(self) -> bool:
        return False

    def enlist(self, sizes: Sizes) -> Welcome:
        welcome = self._server.enlist(sizes) if self._leads else None
        said = b""
        if welcome is not None:
            said = json.dumps([welcome.seed, welcome.statistics.tolist(), welcome.scalars]).encode()
        seed, statistics, scalars = json.loads(self._collective.tell(said))
        return Welcome(seed, torch.tensor(statistics, dtype=torch.float64), scalars)

    def join(self, ahead: int) -> Reply:
        return self._told(self._server.join(ahead) if self._leads else None)

    def push(self, push: Push) -> Reply:
        """Push once all shares are written; finite only if every share and every worker's loss is."""
        mean = self.memory.statistics.clone()
        mean_in_place(self._collective, [mean])
        agreement = math.nan if push.agreement is None else push.agreement
        told = torch.tensor([float(push.finite), push.loss, agreement], dtype=torch.float64)
        finite, losses, agreements = self._collective.gather(told).unbind(dim=1)
        bad = tuple((~torch.isfinite(losses)).nonzero().flatten().tolist())
        whole = replace(push, finite=bool(finite.all()), loss=summed(losses.tolist()), not_finite=bad)
        taught = agreements[~agreements.isnan()]
        if len(taught):
            whole = replace(whole, agreement=float(taught.mean()))
        if not self._leads:
            return self._told(None)
        # Nobody reads them there before the push: what is shared is only the leader's to write.
        self._server.memory.statistics.copy_(mean)
        return self._told(self._server.push(whole))

    def measured(self, measured: Measured) -> Reply:
        """Hand in the sums over what all workers of the group measured."""
        names = sorted(measured.sums)
        own = [*(measured.sums[name] for name in names), measured.samples]
        *sums, samples = self._collective.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        whole = replace(measured, sums=dict(zip(names, sums, strict=True)), samples=samples)
        return self._told(self._server.measured(whole) if self._leads else None)

    def read(self, at_least: Version, into: Tensor) -> Version:
        """Read the version that the leader chose; where the shards are too fast for that, get its copy."""
        for _ in range(ATTEMPTS):
            chosen = self._server.read(at_least, into) if self._leads else at_least
            version = Version(*json.loads(self._collective.tell(json.dumps(chosen).encode())))
            got = self._leads or self._server.read_exactly(version, into)
            if self._collective.sum(torch.tensor([float(not got)])).item() == 0:
                return version
        values = self._collective.tell(into.numpy().tobytes() if self._leads else b"")
        into.copy_(torch.frombuffer(bytearray(values), dtype=into.dtype))
        return version

    def read_in_place(self, at_least: Version) -> tuple[Version, Tensor]:
        raise AssertionError(f"the workers of a group have copies, also of {at_least}")

    def read_exactly(self, version: Version, into: Tensor) -> bool:
        return self._server.read_exactly(version, into)

    def read_held(self, parameters: Tensor, statistics: Tensor) -> None:
        self._server.read_held(parameters, statistics)

    def _told(self, reply: Reply | None) -> Reply:
        said = b"" if reply is None else json.dumps(asdict(reply)).encode()
        return decoded(json.loads(self._collective.tell(said)))


def summed(losses: Sequence[float]) -> float:
    """Add up the workers' losses in the order of their ranks, which a replay repeats."""
    return sum(losses, start=0.0)


def decoded(said: dict[str, object]) -> Reply:
    """Make a reply of what ``asdict`` and JSON made of it."""
    fields = dict(said)
    work = tuple(_work(**each) for each in fields.pop("work"))  # type: ignore[attr-defined]
    part = fields.pop("validation")
    version = Version(*fields.pop("version"))  # type: ignore[misc]
    validation = None if part is None else ValidationPart(**part)  # type: ignore[arg-type]
    return Reply(work=work, version=version, validation=validation, **fields)  # type: ignore[arg-type]


def _work(lease: dict[str, int], own: list[dict[str, float]]) -> Work:
    return Work(Lease(**lease), tuple(Scheduled(**each) for each in own))
