"""Reading a configuration: from a file or a mapping, with overrides, to a Config that is right in full."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_train.config import shape
from dist_train.config.checking import check, expand, show
from dist_train.config.overrides import apply_override, drop_alternatives
from dist_train.config.problems import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_VALUES,
    ROOT,
    TOO_DEEP,
    TOO_LONG,
    TOO_MANY,
    Document,
    KeyPath,
    Origins,
    Place,
    one_line,
)
from dist_train.config.schema import Config
from dist_train.config.yaml_source import NOTHING, REFUSED, parse
from dist_train.errors import ConfigError

MAX_BYTES = 1 << 20


def load_config(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration: a YAML file, or a mapping of the same form.

    ``overrides`` are ``key.sub=value`` with a YAML value; they replace what the source says, and missing
    sections are made. A number that is given in another unit (``train.steps`` over the file's
    ``train.epochs``) drops the file's. Raises ConfigError with one line for each problem.
    """
    if isinstance(source, Mapping):
        document = _from_mapping(source)
    else:
        document = _from_file(Path(source))
    document.tree = expand(document.tree)
    given = [apply_override(document, text, order) for order, text in enumerate(overrides)]
    drop_alternatives(document, [path for path in given if path is not None])
    return check(document)


def _from_file(path: Path) -> Document:
    name = one_line(str(path))
    text = _text(path, name)
    document = parse(text, name)
    if document.tree is REFUSED:
        document.problems.raise_any()
    if document.tree is NOTHING:
        raise ConfigError(f"{name}:1:1: the file is empty; it needs at least {_required()}")
    if not isinstance(document.tree, dict):
        found = "a list" if isinstance(document.tree, list) else show(document.tree)
        place = document.origins.key(ROOT)
        raise ConfigError(f"{place}: expected 'key: value' lines with {_required()}, found {found}")
    return document


def _required() -> str:
    return ", ".join(name for name, field in Config.model_fields.items() if field.is_required())


def _text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file{_similar_file(path)}") from None
    except IsADirectoryError:
        raise ConfigError(
            f"{name}: this is a directory; give the YAML file in it{_similar_file(path)}"
        ) from None
    except PermissionError:
        raise ConfigError(f"{name}: no permission to read this file; see its mode with ls -l") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{name}: cannot be read: {reason}; give the path of a YAML file") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{name}: larger than {MAX_BYTES >> 20} MiB; give the path of a YAML configuration")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        place = Place(name, before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        byte = content[error.start]
        raise ConfigError(f"{place}: byte {byte:#04x} is not UTF-8 text; save the file as UTF-8") from None


def _similar_file(path: Path) -> str:
    """Name a YAML file beside the missing one, or in the given directory, that was probably meant."""
    folder = path if path.is_dir() else path.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return ""
    meant = shape.nearest(path.name, names) or shape.nearest(f"{path.name}.yaml", names)
    return f"; did you mean {one_line(str(folder / meant))}?" if meant else ""


def _from_mapping(source: Mapping[Any, Any]) -> Document:
    document = Document(None, Origins(Place("config")))
    document.tree = _Plain(document).copy(source, ROOT)
    return document


class _Plain:
    """Copies a mapping into the values that YAML has, refusing all others."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._values = 0

    def copy(self, value: Any, path: KeyPath) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise ConfigError(f"config: {TOO_MANY}")
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"config: {TOO_DEEP}")
        if isinstance(value, Mapping):
            return {key: self.copy(child, (*path, key)) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(child, (*path, index)) for index, child in enumerate(value)]
        if type(value) is int and value.bit_length() > MAX_DIGITS * 3:
            self._document.problems.add(Place("config"), path, TOO_LONG)
            return None
        if value is None or type(value) in (bool, int, float, str):
            return value
        kind = type(value).__name__
        text = (
            f"expected text, a number, true, false, null, a list or a mapping, found a value of type {kind}"
        )
        self._document.problems.add(Place("config"), path, text)
        return None
