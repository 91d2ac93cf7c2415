"""A Config as YAML text that reads back to the same Config, and the differences between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from dist_train.config.problems import dotted
from dist_train.config.schema import Config
from dist_train.config.yaml_source import RESOLVERS


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or 1.2 would take for something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds Unicode's other line breaks away unless they are escaped.
    style = None if text.replace("\n", "").isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
for _tag, _pattern, _first in RESOLVERS:
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def dump_config(config: Config) -> str:
    """Write a Config as YAML that reads back equal; keys stand in the schema's order, tags first."""
    return yaml.dump(
        _plain(config),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=10**9,
        default_flow_style=False,
    )


def differences(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """The key paths at which two Configs differ, each with the old value and the new, in the schema's order.

    None stands for a key that one of them does not have. Lists are compared as a whole.
    """
    return _differences(_plain(old), _plain(new), ())


def flatten(config: Config) -> dict[str, str]:
    """Return every setting as text under its key path: what workers compare before they start."""
    return {path: repr(value) for path, value in _leaves(_plain(config), ())}


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield dotted(path), value
        return
    for key, child in value.items():
        yield from _leaves(child, (*path, key))


def _differences(old: Any, new: Any, path: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [(dotted(path), old, new)]
    keys = dict.fromkeys([*old, *new])
    return [found for key in keys for found in _differences(old.get(key), new.get(key), (*path, key))]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {
            key: _plain(child) for key, child in sorted(value, key=lambda item: not _is_tag(value, item[0]))
        }
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return value


def _is_tag(section: BaseModel, key: str) -> bool:
    """Whether a key says which variant of a tagged union this section is."""
    field = type(section).model_fields.get(key)
    if field is None or get_origin(field.annotation) is not Literal:
        return False
    values = get_args(field.annotation)
    return len(values) == 1 and isinstance(values[0], str)
