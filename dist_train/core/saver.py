"""Saving in the background: training stops for the copy to memory and goes on while the disk works."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from dist_train.core.checkpoint import Facts, Part
from dist_train.core.commit import Committer, Draft, Outcome, describe
from dist_train.core.tensor_files import snapshot


class Saver:
    """One worker's checkpoints, one after the other.

    ``on_event`` is given one dictionary for each checkpoint, on every rank, in the saver's own thread:
    ``{"event": "checkpoint", "step", "path", "size", "seconds", "stall_s", ...}`` or
    ``{"event": "checkpoint_failed", "step", "reason", ...}``. ``stall_s`` is what training waited for.
    """

    def __init__(self, committer: Committer, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._committer = committer
        self._on_event = on_event
        # An executor's threads are joined when the interpreter exits: no save is cut off in silence.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"checkpoint-rank-{committer.rank}")
        self._running: Future[Outcome] | None = None
        self._buffers: dict[str, dict[str, Tensor]] = {}
        self._turn = 0
        self.stall_s = 0.0

    def save(self, step: int, facts: Facts, parts: Mapping[str, Part], wait: bool = False) -> None:
        """Copy ``parts`` and start to commit them; every rank calls this at the same steps.

        The tensors may be live and on any device: they are copied before the call returns, into memory
        that every save uses again. A save that is still running is waited for first. A failure is an
        event, not an error.
        """
        began = time.perf_counter()
        self.wait()
        draft = self._draft(step, facts, parts)
        stall_s = time.perf_counter() - began
        self.stall_s += stall_s
        self._running = self._thread.submit(self._commit, draft, stall_s)
        if wait:
            self.wait()

    @property
    def busy(self) -> bool:
        return self._running is not None and not self._running.done()

    def wait(self, timeout_s: float | None = None) -> Outcome | None:
        """Wait for the last save; return its outcome, or None if there is none yet."""
        if self._running is None:
            return None
        try:
            return self._running.result(timeout_s)
        except TimeoutError:
            return None

    def close(self) -> None:
        """Wait for the last save and end the thread."""
        self._thread.shutdown(wait=True)

    def _draft(self, step: int, facts: Facts, parts: Mapping[str, Part]) -> Draft:
        self._turn += 1
        try:
            owned = {name: self._own(name, part) for name, part in parts.items()}
        except Exception as error:
            return Draft(self._turn, step, facts, {}, failure=describe(error))
        return Draft(self._turn, step, facts, owned)

    def _own(self, name: str, part: Part) -> Part:
        self._buffers[name] = snapshot(part.tensors, into=self._buffers.get(name))
        return Part(self._buffers[name], copy.deepcopy(part.values), part.finite)

    def _commit(self, draft: Draft, stall_s: float) -> Outcome:
        began = time.perf_counter()
        try:
            outcome = self._committer.commit(draft)
        except Exception as error:
            outcome = Outcome(draft.step, reason=describe(error))
        seconds = time.perf_counter() - began
        self._on_event(_event(outcome) | {"seconds": round(seconds, 4), "stall_s": round(stall_s, 4)})
        return outcome


def _event(outcome: Outcome) -> dict[str, Any]:
    if outcome.path is None:
        return {"event": "checkpoint_failed", "step": outcome.step, "reason": outcome.reason}
    event = {"event": "checkpoint", "step": outcome.step, "path": str(outcome.path), "size": outcome.size}
    if outcome.pruned:
        event["pruned"] = list(outcome.pruned)
    if outcome.problems:
        event["problems"] = list(outcome.problems)
    return event
