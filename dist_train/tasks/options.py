"""The options of the built-in tasks, and what can be wrong with their data, without importing torch."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from dist_train.config.section import NonNegative, PositiveInt, Section
from dist_train.tasks import corpus, folders

Share = Annotated[float, Field(gt=0, lt=1, strict=True)]
LocalPath = Annotated[
    Path, AfterValidator(lambda path: Path(os.path.expanduser(path))), Field(description="a path")
]

IMAGE_MODELS = ("mlp", "cifar_resnet", "resnet18", "resnet50")


class Digits(Section):
    validation_share: Share = 0.2

    @property
    def models(self) -> tuple[str, ...]:
        return IMAGE_MODELS

    def problems(self) -> list[str]:
        return missing_package("sklearn", "scikit-learn", "digits")


class Text(Section):
    # Files and folders; null: the source files of the Python standard library.
    paths: tuple[LocalPath, ...] | None = None
    # Which files of a folder.
    pattern: Annotated[str, Field(min_length=1)] = "*.py"
    # Bytes the model sees at once.
    context: PositiveInt = 128
    validation_share: Share = 0.05
    # Use no more than this much of the text.
    max_bytes: PositiveInt | None = None

    @property
    def models(self) -> tuple[str, ...]:
        return ("gpt",)

    def problems(self) -> list[str]:
        places = "the standard library" if self.paths is None else ", ".join(map(str, self.paths))
        pieces = corpus.find(self.paths, self.pattern)
        if not pieces:
            return [f"task_options.paths: no file with text in {places or '[]'} matches {self.pattern!r}"]
        if unreadable := [str(piece.path) for piece in pieces if not os.access(piece.path, os.R_OK)]:
            return [f"task_options.paths: no permission to read {path}" for path in unreadable[:5]]
        parts = corpus.split(
            corpus.cut(pieces, self.max_bytes or corpus.length(pieces))[0], self.validation_share
        )
        return [
            f"task_options.context: {corpus.length(part)} bytes of {kind} text are too few for a context of "
            f"{self.context}; give more text or a shorter context"
            for kind, part in zip(("training", "validation"), parts, strict=True)
            if corpus.length(part) <= self.context
        ]


class Images(Section):
    data_dir: LocalPath
    # Side of the square that the model sees, in pixels.
    size: PositiveInt = 224

    @property
    def models(self) -> tuple[str, ...]:
        return IMAGE_MODELS

    def problems(self) -> list[str]:
        tree = [f"task_options.data_dir: {problem}" for problem in folders.image_problems(self.data_dir)]
        return missing_package("PIL", "pillow", "images") + tree


class Cifar10(Section):
    data_dir: LocalPath

    @property
    def models(self) -> tuple[str, ...]:
        return IMAGE_MODELS

    def problems(self) -> list[str]:
        return [f"task_options.data_dir: {problem}" for problem in folders.cifar_problems(self.data_dir)]


class Synthetic(Section):
    samples: Annotated[int, Field(ge=8, strict=True)] = 4096
    # Of one sample: [values] or [channels, height, width].
    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (3, 32, 32)
    classes: Annotated[int, Field(ge=2, strict=True)] = 10
    # Standard deviation of what is added to the class's prototype, whose values have standard deviation 1.
    noise: NonNegative = 1.0

    @property
    def models(self) -> tuple[str, ...]:
        return IMAGE_MODELS if len(self.shape) == 3 else ("mlp",)

    def problems(self) -> list[str]:
        return []


Options = Digits | Text | Images | Cifar10 | Synthetic

OPTIONS: dict[str, type[Options]] = {
    "digits": Digits,
    "text": Text,
    "images": Images,
    "cifar10": Cifar10,
    "synthetic": Synthetic,
}


def missing_package(module: str, package: str, task: str) -> list[str]:
    """Return a line with the command that installs ``package``, where ``module`` cannot be imported."""
    if importlib.util.find_spec(module) is not None:
        return []
    return [f"task: {task} needs the package {package}, which is not installed; run: pip install {package}"]
