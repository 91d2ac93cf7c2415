"""The figures of the server modes as short text: staleness, drops, waiting, and each worker's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from dist_train.watch.figures import GAP, Figure, counted, duration, quantity
from dist_train.watch.records import TrainLine, WorkerFigures
from dist_train.watch.tally import CAUSES

TIMES_TRAINED = {0: "never", 1: "once", 2: "twice"}
# Of the sample ledger's entries, the summary's table shows the last.
LEDGER_ENTRIES = 3
# Below this ratio to the median a worker is like the others, so that the choice does not flicker.
LEAST_DIFFERENCE = 1.25
# Drops are compared as if everybody had this many more: one or two are no difference.
FURTHER_DROPS = 10
# Waiting that is less than this share of the time is not worth a place on the screen.
LEAST_WAITING = 0.01


def server_progress(line: TrainLine) -> list[Figure]:
    """How the server is doing, most important first; none in a mode without one."""
    if line.workers is None:
        return []
    extras = line.extras
    figures = [("staleness", f"{extras['staleness']:.1f} (p99 {extras['staleness_p99']:.0f})")]
    for fate in ("dropped", "refused"):
        number = int(extras[fate])
        if number:
            figures.append((fate, f"{number:,} ({number / max(1, extras['computed']):.1%})"))
    return [*figures, ("waiting", waiting(line))]


def waiting(line: TrainLine) -> str:
    """Say which share of the workers' time goes into waiting, and for what most of it."""
    whole = fmean(worker.waiting for worker in line.workers or ())
    seconds = {cause: line.extras[f"waiting_{cause}"] for cause in CAUSES}
    total = sum(seconds.values())
    if whole < LEAST_WAITING or not total:
        return f"{whole:.0%}"
    most = max(CAUSES, key=lambda cause: seconds[cause])
    return f"{whole:.0%} ({most} {whole * seconds[most] / total:.0%})"


def telling(workers: Sequence[WorkerFigures], most: int) -> tuple[list[WorkerFigures], list[WorkerFigures]]:
    """Choose about ``most`` workers to show: those that differ most from the rest, in the order given.

    Returns those and the others, at least two if any. A worker differs by the largest of these ratios to
    the median: how much slower it is, how much staler, how much oftener dropped.
    """
    if len(workers) <= most + 1:
        return list(workers), []
    rate, staleness, dropped = (
        median(getattr(worker, name) for worker in workers)
        for name in ("samples_per_s", "staleness", "dropped")
    )

    def difference(worker: WorkerFigures) -> float:
        ratio = max(
            (rate + 1e-9) / (worker.samples_per_s + 1e-9),
            (1 + worker.staleness) / (1 + staleness),
            (FURTHER_DROPS + worker.dropped) / (FURTHER_DROPS + dropped),
        )
        return ratio if ratio >= LEAST_DIFFERENCE else 1.0

    chosen = {worker.name for worker in sorted(workers, key=difference, reverse=True)[:most]}
    shown = [worker for worker in workers if worker.name in chosen]
    return shown, [worker for worker in workers if worker.name not in chosen]


def together(workers: Sequence[WorkerFigures]) -> WorkerFigures:
    """Return the others' figures in one: their number, and the means of what they do."""
    return WorkerFigures(
        name=counted(len(workers), "other"),
        samples_per_s=fmean(worker.samples_per_s for worker in workers),
        staleness=fmean(worker.staleness for worker in workers),
        dropped=round(fmean(worker.dropped for worker in workers)),
        waiting=fmean(worker.waiting for worker in workers),
    )


def workers_text(workers: Sequence[WorkerFigures], most: int = 4) -> str:
    """Write the most telling workers' figures, and the others' together, in one line."""
    shown, others = telling(workers, most)
    parts = [f"{worker.name}: {worker_text(worker)}" for worker in shown]
    if others:
        whole = together(others)
        parts.append(f"{whole.name}: on average {worker_text(whole)}")
    return (";" + GAP).join(parts)


def worker_text(worker: WorkerFigures) -> str:
    dropped = f", {worker.dropped:,} dropped" if worker.dropped else ""
    return f"{quantity(worker.samples_per_s)} samples/s, staleness {worker.staleness:.1f}{dropped}"


def server_outcome(summary: Mapping[str, Any]) -> dict[str, str]:
    """Make the further rows of the summary table, label to text, that summary.json's object has."""
    rows = {}
    if gradients := summary.get("gradients"):
        fates = [
            f"{gradients[fate]:,} {fate}" for fate in ("applied", "dropped", "refused") if gradients[fate]
        ]
        rows["gradients"] = f"{gradients['computed']:,} computed" + (f": {', '.join(fates)}" if fates else "")
    if staleness := summary.get("staleness"):
        rows["staleness"] = (
            f"mean {staleness['mean']:.2f}, p99 {staleness['p99']:,}, max {staleness['max']:,}"
        )
    if any(summary.get("waiting", {}).values()):
        causes = ", ".join(f"{cause} {duration(s)}" for cause, s in summary["waiting"].items() if s)
        rows["waiting"] = f"{causes} (all workers together)"
    if summary.get("lost_updates"):
        rows["lost updates"] = f"{summary['lost_updates']:,}"
    if backups := summary.get("backups"):
        rows["backups"] = backups["why"]
    if ledger := summary.get("ledger"):
        since = summary.get("ledger_since")
        rows["samples trained"] = ledger_text(ledger) + (f" (after the first {since:,})" if since else "")
    return rows


def ledger_text(ledger: Sequence[Mapping[str, Any]]) -> str:
    """Write the sample ledger's last entries: "epochs 0 to 8: 1,437 once; epoch 9: 37 never, 1,400 once"."""
    parts = [] if len(ledger) <= LEDGER_ENTRIES else ["..."]
    for entry in ledger[-LEDGER_ENTRIES:]:
        first, last = entry["epochs"]
        epochs = f"epoch {first}" if first == last else f"epochs {first} to {last}"
        samples = [
            f"{count:,} {TIMES_TRAINED.get(int(times), f'({times} times)')}"
            for times, count in entry["samples"].items()
        ]
        parts.append(f"{epochs}: {', '.join(samples)}")
    return "; ".join(parts)
