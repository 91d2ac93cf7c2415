"""A run's figures as short text: what every display shows, apart from how it is laid out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_train.watch.records import TrainLine, ValLine

# A label and its value; the label may be empty.
Figure = tuple[str, str]

GAP = "  "


@dataclass(frozen=True)
class Length:
    """How long the run is."""

    steps: int
    samples: int
    epochs: float


def remaining_seconds(samples: int, total: int, samples_per_s: float) -> float | None:
    """Return the time left until ``total`` samples at this rate; None when the rate tells nothing."""
    if not math.isfinite(samples_per_s) or samples_per_s <= 0:
        return None
    return max(0, total - samples) / samples_per_s


def smoothed(before: float | None, now: float, weight: float = 0.3) -> float:
    """Return the running mean of a rate, so that the time left does not flicker."""
    return now if before is None else before + weight * (now - before)


def duration(seconds: float | None) -> str:
    """Write a length of time in its two largest units: 0.3s, 45s, 1m 23s, 2h 05m, 3d 04h."""
    if seconds is None:
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}h"
    if hours:
        return f"{hours}h {minute:02d}m"
    return f"{minutes}m {second:02d}s" if minutes else f"{second}s"


def quantity(value: float) -> str:
    """Write a rate with three digits: 0.52, 87.1, 412, 12.3k, 1.05M."""
    unit = ""
    for larger in ("k", "M", "G"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    decimals = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{decimals}f}{unit}"


def measure(value: float) -> str:
    """Write a loss or a metric with four decimals, or with an exponent where those would not show it."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e5 or not math.isfinite(value)
    return f"{value:.4f}" if plain else f"{value:.3e}"


def metric(name: str, value: float) -> Figure:
    """Write one metric; an accuracy is a percentage."""
    share = "accuracy" in name and 0 <= value <= 1
    return (name, f"{value:.2%}" if share else measure(value))


def position(line: TrainLine, length: Length, rate: float) -> list[Figure]:
    """How far the run is, most important first; ``rate`` is the (smoothed) samples per second.

    The figures are padded, so that they keep their places from line to line.
    """
    steps, epochs = f"{length.steps:,}", f"{length.epochs:.2f}"
    left = duration(remaining_seconds(line.samples, length.samples, rate))
    return [
        ("step", f"{line.step:>{len(steps)},}/{steps}"),
        ("ETA", f"{left:>{len('59m 59s')}}"),
        ("epoch", f"{line.epoch:>{len(epochs)}.2f}/{length.epochs:.4g}"),
    ]


def progress(line: TrainLine) -> list[Figure]:
    """How the run is doing, most important first; what a server adds is in server_figures."""
    of_the_mode = {} if line.workers is not None else line.extras
    extras = [(name, measure(value)) for name, value in of_the_mode.items()]
    return [
        ("loss", measure(line.loss)),
        ("lr", f"{line.lr:.4g}"),
        (
            "samples/s",
            f"{quantity(line.samples_per_s)} ({quantity(line.samples_per_s_per_worker)} per worker)",
        ),
        ("data wait", f"{line.data_wait:.0%}"),
        *extras,
    ]


def validation(line: ValLine, length: Length) -> list[Figure]:
    """What a validation found; the position is padded, so that lines below each other align."""
    steps, epochs = f"{length.steps:,}", f"{length.epochs:.2f}"
    return [
        ("step", f"{line.step:>{len(steps)},}"),
        ("epoch", f"{line.epoch:>{len(epochs)}.2f}"),
        ("loss", measure(line.loss)),
        *(metric(name, value) for name, value in line.metrics.items()),
        ("in", duration(line.seconds)),
    ]


def outcome(summary: Mapping[str, Any]) -> dict[str, str]:
    """Make the summary table's rows, label to text, from summary.json's object."""
    rows = {
        "status": str(summary["status"]),
        "mode": f"{summary['mode']}, {counted(summary['workers'], 'worker')}",
        "steps": f"{summary['steps']:,}",
        "samples": f"{summary['samples']:,}",
        "wall time": duration(summary["wall_s"]),
        "samples/s": quantity(summary["samples_per_s"]),
        "restarts": f"{summary['restarts']:,}",
    }
    if replaced := summary.get("replaced"):
        rows["restarts"] += f", and {counted(replaced, 'worker')} replaced"
    for label, key in (("validation", "val"), ("best", "best")):
        if summary.get(key):
            rows[label] = as_text(found(summary[key]))
    if summary.get("error"):
        rows["error"] = str(summary["error"])
    return rows


def found(measures: Mapping[str, float]) -> list[Figure]:
    return [
        (name, f"{value:,}") if isinstance(value, int) else metric(name, value)
        for name, value in measures.items()
    ]


def places(summary: Mapping[str, Any]) -> dict[str, str]:
    """Say where the run's results lie; apart from the table, so that a long path stays in one piece."""
    named = {"run directory": summary.get("run_dir"), "model": summary.get("model")}
    return {label: str(path) for label, path in named.items() if path}


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def as_text(figures: Sequence[Figure]) -> str:
    """Join figures in one line."""
    return GAP.join(f"{label} {value}".strip() for label, value in figures)


def one_line(text: str) -> str:
    """Put foreign text on one line: line ends and control characters become spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text).rstrip()


def fitting(figures: Sequence[Figure], width: int) -> list[Figure]:
    """Keep the first figures, as many as fit in ``width`` columns; the first always stays."""
    kept = list(figures)
    while len(kept) > 1 and len(as_text(kept)) > width:
        kept.pop()
    return kept
