"""Image data sets on disk: a folder for each class, and CIFAR-10's binary files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dist_train.models.imports import suggest

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val")
LISTED = 5  # problems of one kind that are named; the rest are counted
READERS = 16  # folders read at the same time: most of the time is waiting for the file system

CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_TRAINING = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR_VALIDATION = ("test_batch.bin",)
CIFAR_RECORD = 1 + 3 * 32 * 32  # the label, then the red, the green and the blue plane
CIFAR_RECORDS = 10_000  # in each file


def class_names(folder: Path) -> list[str]:
    """The classes of ``folder``, in order: one for each folder in it."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def image_names(folder: Path) -> list[str]:
    """The image files of one class, in order."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry))


def images_by_class(folder: Path) -> list[tuple[str, list[str]]]:
    """The classes of ``folder`` with their image files, in order."""
    classes = class_names(folder)
    with ThreadPoolExecutor(READERS) as readers:
        return list(zip(classes, readers.map(lambda name: image_names(folder / name), classes), strict=True))


def image_problems(data_dir: Path) -> list[str]:
    """Return what is wrong with a tree of images, one line each: missing folders, classes and contents."""
    missing = [str(data_dir / split) for split in SPLITS if not (data_dir / split).is_dir()]
    if missing:
        return [
            f"there is no folder {folder} (expected: train/ and val/, each a folder a class)"
            for folder in missing
        ]
    training, validation = (class_names(data_dir / split) for split in SPLITS)
    if not training:
        return [f"{data_dir / 'train'} has no folders; it needs one for each class"]
    return _unmatched(data_dir, training, validation) + [
        problem for split in SPLITS for problem in _content_problems(data_dir / split)
    ]


def cifar_folder(data_dir: Path) -> Path:
    """Where the binary files are: in ``data_dir`` itself or in the folder that the archive unpacks to."""
    unpacked = data_dir / CIFAR_FOLDER
    return unpacked if unpacked.is_dir() else data_dir


def cifar_problems(data_dir: Path) -> list[str]:
    """Return what is wrong with CIFAR-10's binary files, one line each."""
    folder, right_size = cifar_folder(data_dir), CIFAR_RECORD * CIFAR_RECORDS
    problems = []
    for name in CIFAR_TRAINING + CIFAR_VALIDATION:
        path = folder / name
        if not path.is_file():
            problems.append(f"there is no file {path}; unpack cifar-10-binary.tar.gz into {data_dir}")
        elif (size := path.stat().st_size) != right_size:
            problems.append(f"{path} has {size:,} bytes instead of {right_size:,}; fetch and unpack it again")
    return problems


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_ENDINGS) and not entry.name.startswith(".")


def _unmatched(data_dir: Path, training: Sequence[str], validation: Sequence[str]) -> list[str]:
    here, there = set(training), set(validation)
    lines = [f"class {name!r} is in {data_dir / 'train'} and not in val" for name in sorted(here - there)]
    lines += [
        f"class {name!r} is in {data_dir / 'val'} and not in train; {suggest(name, training)}"
        for name in sorted(there - here)
    ]
    return _shortened(lines)


def _content_problems(folder: Path) -> list[str]:
    classes = [folder / name for name in class_names(folder)]
    with ThreadPoolExecutor(READERS) as readers:
        found = list(readers.map(_sizes, classes))
    without = [
        f"class folder {path} has no images" for path, sizes in zip(classes, found, strict=True) if not sizes
    ]
    empty = [
        f"image {path / name} is empty (0 bytes)"
        for path, sizes in zip(classes, found, strict=True)
        for name, size in sizes
        if not size
    ]
    return _shortened(without) + _shortened(empty)


def _sizes(folder: Path) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        return sorted((entry.name, entry.stat().st_size) for entry in entries if _is_image(entry))


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= LISTED:
        return lines
    return [*lines[:LISTED], f"... and {len(lines) - LISTED} more like the last"]
