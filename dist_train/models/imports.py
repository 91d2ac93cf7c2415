"""From a name in the configuration to the Python object it means, with errors that say what to do."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from dist_train.config.shape import nearest
from dist_train.errors import ConfigError


def is_import_path(name: str) -> bool:
    """Whether ``name`` is the user's own object rather than a built-in name."""
    return ":" in name


def suggest(name: str, valid: Iterable[str]) -> str:
    """Say which of the ``valid`` names was probably meant, or what there is to choose from."""
    names = sorted(valid)
    if meant := nearest(name, names):
        return f"did you mean {meant}?"
    return f"choose one of {', '.join(names)}" if names else "there is none to choose"


def resolve(reference: str) -> Any:
    """Import ``"package.module:attribute"`` or ``"path/to/file.py:attribute"``.

    A module is looked for in the current directory first. A file becomes an importable module under
    its own name wherever that name is free, so that its classes can be pickled to other processes.
    Raises ConfigError with one line: the exception's type, the file and the line.
    """
    place, _, attribute = reference.rpartition(":")
    if not place or not attribute:
        raise ConfigError(f"{reference}: write package.module:attribute or path/to/file.py:attribute")
    module = _load_file(Path(place), reference) if place.endswith(".py") else _load_module(place, reference)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_")]
            raise ConfigError(f"{reference}: {place} has no {part!r}; {suggest(part, public)}")
        found = getattr(found, part)
    return found


def argument_problems(target: Callable[..., Any], given: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return (name, problem) for each keyword that ``target`` does not take or still needs."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []  # a callable written in C may have no signature to read
    by_name = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [] if takes_any else [name for name in given if name not in by_name]
    missing = [n for n, p in by_name.items() if p.default is p.empty and n not in given]
    return [(name, f"unknown option; {suggest(name, by_name)}") for name in unknown] + [
        (name, "missing; this option is required") for name in missing
    ]


def _load_module(name: str, reference: str) -> ModuleType:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            looked = f"in {os.getcwd()} and among the installed packages"
            raise ConfigError(f"{reference}: there is no module {error.name!r} {looked}") from error
        raise _failed(reference, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(reference, error) from error


def _load_file(path: Path, reference: str) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"{reference}: there is no file {path}")
    # Appended, so that the file finds its neighbours and yet they hide no installed module.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    try:
        if _origin(path.stem) == path:
            return importlib.import_module(path.stem)
        return _load_under_alias(path)
    except (Exception, SystemExit) as error:
        raise _failed(reference, error) from error


def _origin(name: str) -> Path | None:
    """Where ``import name`` would find, or has found, its source."""
    if not name.isidentifier():
        return None
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:
        return None  # a module made without a spec, such as __main__
    return Path(spec.origin).resolve() if spec and spec.origin else None


def _load_under_alias(path: Path) -> ModuleType:
    alias = f"{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{zlib.crc32(os.fsencode(path)):08x}"
    if alias in sys.modules:
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded as a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    return module


def _failed(reference: str, error: BaseException) -> ConfigError:
    if isinstance(error, SyntaxError):
        reason, file, line = error.msg, error.filename, error.lineno
    else:
        reason = " ".join(str(error).split())
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")
        ]
        file, line = frames[-1].filename, frames[-1].lineno
    return ConfigError(f"{reference}: {type(error).__name__}: {reason} ({file}, line {line})")
