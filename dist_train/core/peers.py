"""Teachers who train on the same batches: replicas send one another what they predict, batch by batch.

There is no second model and no second forward pass, and a teacher is never stale; but all replicas see the
same samples (Sodhani et al. 2020, prediction exchange).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dist_train.rules.attendance import Attendance

# Hands in (updates, batch), how many workers of the group have such a batch, and the scores; returns those of
# the teachers that are there, by replica and in order: the same ones on all these workers.
Swap = Callable[[tuple[int, int], int, bytes], Mapping[int, bytes]]


class Peers:
    """``workers_with`` says how many workers of the group have a batch of that number in the next update;
    in the context ``waiting`` the teachers are waited for."""

    foresee = None

    def __init__(
        self,
        teachers: Collection[int],
        swap: Swap,
        workers_with: Callable[[int], int] = lambda batch: 1,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._teachers = frozenset(teachers)
        self._swap = swap
        self._workers_with = workers_with
        self._waiting = waiting
        self._place = (-1, 0)
        self._attendance = Attendance()
        # Where changes are told of.
        self.on_event: Callable[[dict[str, Any]], None] = lambda event: None

    def begin(self, model: nn.Module, updates: int) -> None:
        del model, updates
        self._place = (-1, 0)

    def predictions(self, scores: Tensor, batch: Any, updates: int) -> Sequence[Tensor]:
        del batch
        same_update = updates == self._place[0]
        self._place = (updates, self._place[1] + 1 if same_update else 0)
        sent = scores.float().cpu().contiguous()
        # One that has come apart must not take the others along: it sends nothing.
        said = sent.numpy().tobytes() if bool(torch.isfinite(sent).all()) else b""
        workers = self._workers_with(self._place[1])
        with self._waiting():
            heard = self._swap(self._place, workers, said)
        self._tell_who_teaches(heard, updates)
        return [
            torch.from_numpy(np.frombuffer(each, np.float32).reshape(sent.shape).copy()).to(scores.device)
            for each in heard.values()
        ]

    def _tell_who_teaches(self, heard: Mapping[int, bytes], updates: int) -> None:
        gone, back = self._attendance.now(self._teachers - heard.keys())
        for name in gone:
            text = (
                f"replica {name} is gone, has said nothing for codistill.patience_s, or predicts NaN: "
                "training goes on without it until it is there again"
            )
            self.on_event({"event": "teacher_gone", "step": updates, "replica": name, "warning": text})
        for name in back:
            self.on_event({"event": "teacher_back", "step": updates, "replica": name})

    def after(self, updates: int) -> None:
        del updates
