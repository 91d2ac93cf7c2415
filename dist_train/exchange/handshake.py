"""Before the first collective: do all workers mean the same run?

A collective over mismatched tensors may abort the process, hang, or return wrong sums in silence. Workers
therefore compare what they are about to train through the store, and refuse a difference by name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from dist_train.errors import Mismatch, TrainingError

# For the last words between workers that will not train together.
PATIENCE_S = 5.0

Facts = Mapping[str, Mapping[str, str]]


class HandshakeStore(Protocol):
    def set(self, key: str, value: str, /) -> None: ...

    def get(self, key: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...


def handshake(store: HandshakeStore, rank: int, workers: int, facts: Facts, timeout_s: float) -> None:
    """Compare ``facts`` (topic to name to value) of all workers.

    Raises Mismatch naming the ranks and the first differences, TrainingError naming absent ranks.
    """
    text = json.dumps(facts, sort_keys=True).encode()
    store.set(f"handshake/digest/{rank}", hashlib.sha256(text).hexdigest())
    digests = _collect(store, "handshake/digest", range(workers), timeout_s)
    strangers = [peer for peer in range(workers) if digests[peer] != digests[0]]
    if not strangers:
        return
    store.set(f"handshake/facts/{rank}", base64.b85encode(zlib.compress(text)).decode())
    pair = _collect(store, "handshake/facts", (0, strangers[0]), timeout_s)
    ours, theirs = (json.loads(zlib.decompress(base64.b85decode(posted))) for posted in pair.values())
    found = "; ".join(_differences(ours, theirs))
    _leave_together(store, rank, workers)
    who = f"rank {strangers[0]} differs" if len(strangers) == 1 else f"ranks {strangers} differ"
    raise Mismatch(f"{who} from rank 0: {found}; start every rank with the same configuration and code")


def _leave_together(store: HandshakeStore, rank: int, workers: int) -> None:
    """Keep rank 0, and the store that lives with it, until the others have read what they need."""
    store.set(f"handshake/read/{rank}", "")
    if rank == 0:
        with suppress(TrainingError):
            _collect(store, "handshake/read", range(workers), PATIENCE_S)


def _collect(
    store: HandshakeStore, prefix: str, ranks: range | tuple[int, ...], timeout_s: float
) -> dict[int, bytes]:
    deadline = time.monotonic() + timeout_s
    keys = {peer: f"{prefix}/{peer}" for peer in ranks}
    while not store.check(list(keys.values())):
        if time.monotonic() > deadline:
            absent = [peer for peer, key in keys.items() if not store.check([key])]
            raise TrainingError(
                f"waited {timeout_s:.0f} s for ranks {absent}; check that they were started, that they "
                "reach the master address, and their logs"
            )
        time.sleep(0.005)
    return {peer: store.get(key) for peer, key in keys.items()}


def _differences(ours: Facts, theirs: Facts, most: int = 3) -> list[str]:
    lines = []
    for topic in sorted({*ours, *theirs}):
        left, right = ours.get(topic, {}), theirs.get(topic, {})
        for name in sorted({*left, *right}):
            if left.get(name) != right.get(name):
                lines.append(
                    f"{topic} {name} is {right.get(name, 'absent')} instead of {left.get(name, 'absent')}"
                )
    hidden = len(lines) - most
    return [*lines[:most], f"and {hidden} more"] if hidden > 0 else lines
