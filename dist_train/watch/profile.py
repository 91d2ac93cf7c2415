"""A trace of a few steps by torch's profiler, for chrome://tracing or https://ui.perfetto.dev."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from dist_train.config.schema import Profile


class Profiler(Protocol):
    """``start`` before the first step, ``step`` after each one, ``stop`` at the end (also twice)."""

    def start(self) -> None: ...

    def step(self) -> None: ...

    def stop(self) -> None: ...


class NoProfiler:
    """A profiler that is not configured."""

    def start(self) -> None: ...

    def step(self) -> None: ...

    def stop(self) -> None: ...


class StepProfiler:
    """Skips ``wait`` steps, warms up for ``warmup``, records ``active`` and writes ``path``.

    After that the profiler is gone and costs nothing. A run that ends while it records still gets the
    steps it had.
    """

    def __init__(self, profile: Profile, path: Path) -> None:
        self._profile = profile
        self._path = path
        self._steps_left = profile.wait + profile.warmup + profile.active
        self._running: torch.profiler.profile | None = None

    def start(self) -> None:
        from torch import profiler

        plan = profiler.schedule(
            wait=self._profile.wait, warmup=self._profile.warmup, active=self._profile.active, repeat=1
        )
        # The default activities are the CPU and whatever accelerator there is.
        self._running = profiler.profile(schedule=plan, on_trace_ready=self._write)
        self._running.start()

    def step(self) -> None:
        if self._running is None:
            return
        self._running.step()
        self._steps_left -= 1
        if self._steps_left == 0:
            self.stop()

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
        self._running = None

    def _write(self, recorded: torch.profiler.profile) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(self._path))


def open_profiler(profile: Profile | None, run_directory: Path, rank: int) -> Profiler:
    """Make the profiler of one worker; None means none. The trace is ``profile/rank_00000.json``."""
    if profile is None:
        return NoProfiler()
    return StepProfiler(profile, run_directory / "profile" / f"rank_{rank:05d}.json")
