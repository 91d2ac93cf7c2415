"""TensorBoard: a run's figures by global step.

The event file is written with TensorBoard's own record and message types. Neither torch's writer nor
tensorboard's asynchronous one is used: both load TensorFlow where it is installed, which takes seconds.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dist_train.watch.records import TrainLine, ValLine

MILLISECONDS = 1000


def train_scalars(line: TrainLine) -> dict[str, float]:
    """Name a training line's figures by TensorBoard tag."""
    scalars = {
        "train/loss": line.loss,
        "train/lr": line.lr,
        "train/epoch": line.epoch,
        "train/samples": line.samples,
        "perf/samples_per_s": line.samples_per_s,
        "perf/samples_per_s_per_worker": line.samples_per_s_per_worker,
        "perf/data_wait": line.data_wait,
        "perf/step_time_ms": line.times.total * MILLISECONDS,
        "memory/peak_mb": line.memory_mb,
    }
    if line.grad_norm is not None:
        scalars["train/grad_norm"] = line.grad_norm
    phases = {f"perf/{phase}_ms": seconds * MILLISECONDS for phase, seconds in asdict(line.times).items()}
    place = "mode" if line.workers is None else "server"
    return scalars | phases | {f"{place}/{name}": value for name, value in line.extras.items()}


def val_scalars(line: ValLine) -> dict[str, float]:
    """Name a validation's figures by TensorBoard tag."""
    measures = {**line.metrics, "loss": line.loss, "seconds": line.seconds}
    return {f"val/{name}": value for name, value in measures.items()}


class Scalars:
    """Writes scalars to a new event file in ``directory``.

    The file is opened, and tensorboard imported, at the first scalar, so that the first step does not
    wait for it. Where tensorboard does not work, ``warn`` gets one line and nothing is written.
    """

    def __init__(
        self,
        directory: Path,
        warn: Callable[[str], None],
        purge_step: int | None = None,
        configuration: str = "",
    ) -> None:
        """``purge_step`` is the first step that is trained again after a resume: what earlier files say
        from there on is hidden. ``configuration`` is added as text, unless the run is a resumed one.
        """
        self._directory = directory
        self._warn = warn
        self._purge_step = purge_step
        self._configuration = configuration
        self._off = False
        self._file: EventFile | None = None

    def train(self, line: TrainLine) -> None:
        self._add(line.step, train_scalars(line))

    def validation(self, line: ValLine) -> None:
        self._add(line.step, val_scalars(line))

    def restarts(self, step: int, count: int) -> None:
        """Note how many times the workers have been restarted, at the step they start from."""
        self._add(step, {"fault/restarts": count})

    def close(self) -> None:
        if self._file is not None:
            # What was not written is told already, and a full disk is full here too.
            with suppress(OSError):
                self._file.close()
        self._file, self._off = None, True

    def _add(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._off:
            return
        try:
            if self._file is None:
                self._file = self._open()
            self._file.add(step, scalars)
        # A broken installation fails in many ways, and none is worth a run.
        except Exception as error:
            self.close()
            self._warn(f"{self._directory}: no TensorBoard scalars from here on ({error!r})")

    def _open(self) -> EventFile:
        file = EventFile(self._directory)
        if self._purge_step is not None:
            file.start_again(self._purge_step)
        elif self._configuration:
            file.add_text("config", f"```yaml\n{self._configuration}\n```")
        return file


class NoScalars:
    """Scalars that are switched off."""

    def train(self, line: TrainLine) -> None: ...

    def validation(self, line: ValLine) -> None: ...

    def restarts(self, step: int, count: int) -> None: ...

    def close(self) -> None: ...


class EventFile:
    """One TensorBoard event file. Raises ImportError without tensorboard, OSError as ``open`` does."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self._event = event_pb2
        self._summary = summary_pb2
        self._tensor = tensor_pb2
        self._types = types_pb2
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names; the number orders those of one second.
        number = sum(1 for _ in directory.glob("events.out.tfevents.*"))
        host, process = socket.gethostname(), os.getpid()
        name = f"events.out.tfevents.{int(time.time()):010d}.{number:04d}.{host}.{process}"
        self._writer: Any = RecordWriter((directory / name).open("xb"))
        try:
            self._write(file_version="brain.Event:2")
        except OSError:
            self.close()
            raise

    def start_again(self, step: int) -> None:
        """Hide what files before this one hold from ``step`` on."""
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(step=step, session_log=start)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(step=step, summary=self._summary.Summary(value=values))

    def add_text(self, tag: str, text: str) -> None:
        """Add Markdown, as TensorBoard's text page shows it."""
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        tensor = self._tensor.TensorProto(dtype=self._types.DT_STRING, string_val=[text.encode()])
        metadata = self._summary.SummaryMetadata(plugin_data=plugin)
        value = self._summary.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
        self._write(step=0, summary=self._summary.Summary(value=[value]))

    def close(self) -> None:
        self._writer.close()

    def _write(self, **content: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()
