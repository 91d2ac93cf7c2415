"""How fast images are decoded and collated, against torch's plain DataLoader over the same dataset."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dist_train.config.schema import Data
from dist_train.core.data import Order, Samples, Share, training_batches
from dist_train.rules.sampling import Cursor, Position
from dist_train.tasks.images import Images

BATCH = 32
BATCHES = 16
IMAGES = 1024
DISTINCT = 64
LOADERS = (0, 1, 2)
# Loading processes work ahead: all of them come to rest before anyone is timed.
REST_S = 1.5


def make_images(folder: Path) -> None:
    """Write JPEGs of 400 by 300 pixels in two classes: a gradient under noise, each many times over."""
    random = np.random.default_rng(0)
    gradient = np.linspace(0, 200, 400)[None, :, None] * np.linspace(0.3, 1, 300)[:, None, None]
    for number in range(DISTINCT):
        pixels = gradient + random.uniform(0, 55, (300, 400, 3))
        file = BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
        target = folder / "train" / f"class_{number % 2}"
        target.mkdir(parents=True, exist_ok=True)
        for copy in range(IMAGES // DISTINCT):
            (target / f"{number}-{copy}.jpg").write_bytes(file.getvalue())


def ours(task: Images, loaders: int) -> Iterator[Any]:
    order, share = Order(0, IMAGES, BATCH, "drop"), Share(0, 1, 1)
    samples = Samples(task.train_data(), seed=0, bad_samples=0)
    start = Cursor(Position(0, 0))
    return training_batches(samples, order, share, start, Data(loaders=loaders), pin=False)


def plain(task: Images, loaders: int) -> Iterator[Any]:
    loader = DataLoader(
        task.train_data(), BATCH, shuffle=True, num_workers=loaders, persistent_workers=loaders > 0
    )
    while True:
        yield from loader


def measure(rounds: int) -> dict[str, Any]:
    """Return seconds per batch for each loader and number of loading processes, round for round."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        make_images(Path(temporary))
        task = Images(data_dir=Path(temporary))
        for loaders in LOADERS:
            seconds |= _alternate(task, loaders, rounds)
    return {"batch": BATCH, "seconds_per_batch": seconds}


def _alternate(task: Images, loaders: int, rounds: int) -> dict[str, list[float]]:
    # The streams' loading processes end with this call, before the files go.
    streams = {f"dist_train_{loaders}": ours(task, loaders), f"plain_{loaders}": plain(task, loaders)}
    seconds: dict[str, list[float]] = {name: [] for name in streams}
    for stream in streams.values():
        _draw(stream)
    for number in range(rounds):
        # Whoever begins changes from round to round.
        for name in sorted(streams, reverse=number % 2 == 1):
            time.sleep(REST_S)
            seconds[name].append(_draw(streams[name]))
    return seconds


def _draw(stream: Iterator[Any]) -> float:
    start = time.perf_counter()
    for _ in range(BATCHES):
        next(stream)
    return (time.perf_counter() - start) / BATCHES
