"""YAML text to a plain tree that knows where each of its values was written.

The scalars are those of YAML 1.2 (its core schema): ``1e-3`` is a number and ``yes`` is text. Merge keys
(``<<``) are kept from YAML 1.1, and so are whole numbers with ``_`` between digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

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
    show_key,
)
from dist_train.errors import ConfigError

TAG = "tag:yaml.org,2002:"
MERGE = TAG + "merge"
# Stands for a value that was refused while reading; it is never part of a finished configuration.
REFUSED = object()
# The tree of a text without any value in it.
NOTHING = object()

# The plain scalars that are not text: tag, pattern, possible first characters.
RESOLVERS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    (MERGE, re.compile(r"<<$"), ["<"]),
    (TAG + "null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (TAG + "bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (TAG + "int", re.compile(r"(?:[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (
        TAG + "float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
)


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2; used only as far as its node tree."""

    # Own table: the class PyYAML shares with everybody else stays as it is.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in RESOLVERS:
    Loader.add_implicit_resolver(_tag, _pattern, _first)


def _integer(text: str) -> int:
    if text.startswith(("0o", "0x")):
        return int(text, 0)
    return int(text)


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    TAG + "str": ("text", lambda text: text),
    MERGE: ("text", lambda text: text),
    TAG + "null": ("null", lambda text: {"": None, "~": None, "null": None}[text.lower()]),
    TAG + "bool": ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
    TAG + "int": ("a whole number", _integer),
    TAG + "float": ("a number", lambda text: _float(text.lower())),
}


def parse(text: str, source: str, *, path: KeyPath = ROOT, numbered: bool = True) -> Document:
    """Read YAML text, whose value stands at ``path`` of the configuration.

    ``source`` names the text in messages, with line and column where ``numbered``.
    Duplicate keys and refused tags are noted in the document's problems. What is not YAML at all raises
    ConfigError.
    """
    builder = _Builder(source, numbered)
    node = _nodes(text, source, numbered)
    if node is not None:
        builder.document.tree = builder.build(node, path)
    return builder.document


def _nodes(text: str, source: str, numbered: bool) -> yaml.Node | None:
    """The text's node tree, None if there is nothing in it; any fault of PyYAML as a ConfigError."""
    try:
        loader = Loader(text)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = (
            Place(source, before.count("\n") + 1, len(before) - before.rfind("\n")) if numbered else source
        )
        raise ConfigError(f"{place}: the character {error.character:#x} is not allowed; remove it") from None
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_problem(error, source, numbered)) from None
    except (RecursionError, ValueError, OverflowError) as error:
        mark = loader.get_mark()
        place = Place(source, mark.line + 1, mark.column + 1) if numbered else source
        fault = f"not valid YAML: {error}; check the \\ escapes in double quotes"
        raise ConfigError(f"{place}: {TOO_DEEP if isinstance(error, RecursionError) else fault}") from None
    finally:
        loader.dispose()


HINTS = (
    (r"'\t'", "indent with spaces, not tabs"),
    ("mapping values are not allowed", "put text that holds ': ' in quotes, or check the indentation"),
    ("undefined alias", "define it above with &name, or put text that starts with * in quotes"),
    ("another document", "keep one document: remove the '---'"),
    ("could not find expected ':'", "write 'key: value', with a space after the colon"),
    ("cannot start any token", "put text that starts with a special character in quotes"),
    ("while scanning a quoted scalar", "close the quotes"),
    ("while parsing a flow", "close the brackets and put commas between the items"),
)


def _syntax_problem(error: yaml.MarkedYAMLError, source: str, numbered: bool) -> str:
    mark = error.problem_mark or error.context_mark
    place = Place(source, mark.line + 1, mark.column + 1) if mark and numbered else Place(source)
    words = " ".join(part for part in (error.context, error.problem) if part)
    advice = next(
        (advice for sign, advice in HINTS if sign in words), "check the indentation, quotes and brackets"
    )
    return f"{place}: not valid YAML: {' '.join(words.split())}; {advice}"


class _Builder:
    """Turns a node tree into plain values, noting where each was written."""

    def __init__(self, source: str, numbered: bool) -> None:
        self._source = source
        self._numbered = numbered
        self._values = 0
        start = Place(source, 1, 1) if numbered else Place(source)
        self.document = Document(NOTHING, Origins(start))

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count(node, path)
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return [self._item(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        place = self._place(node)
        self.document.origins.record(path, place, place)
        return self.build(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[Any, Any]:
        own = self._own_keys(node, path)
        result: dict[Any, Any] = {}
        for key, key_node, child in [*self._merged(node, path), *own]:
            below = (*path, key)
            self.document.origins.record(below, self._place(key_node), self._place(child))
            result[key] = self.build(child, below)
        return result

    def _own_keys(self, node: yaml.MappingNode, path: KeyPath) -> list[tuple[Any, yaml.Node, yaml.Node]]:
        """The section's own keys; of those given twice, the first."""
        first: dict[Any, yaml.Node] = {}
        keys = []
        for key_node, child in node.value:
            if key_node.tag == MERGE:
                continue
            key = self._key(key_node, path)
            if key is REFUSED:
                continue
            if key in first:
                line = first[key].start_mark.line + 1
                where = f" (first in line {line})" if self._numbered else ""
                text = f"given twice{where}; keep one of them"
                self.document.problems.add(self._place(key_node), (*path, key), text)
                continue
            first[key] = key_node
            keys.append((key, key_node, child))
        return keys

    def _merged(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[Any, yaml.Node, yaml.Node]]:
        """Keys that ``<<`` brings in: later ones win, so the first of several sources comes last."""
        for key_node, value in node.value:
            if key_node.tag != MERGE:
                continue
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for source in reversed(sources):
                below = (*path, "<<")
                self._count(source, below)
                if isinstance(source, yaml.MappingNode):
                    yield from self._merged(source, below)
                    yield from self._own_keys(source, below)
                else:
                    text = "must be followed by the alias of a section, as in '<<: *name'"
                    self._refuse(source, below, text)

    def _key(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        text = "a key must be a word, found a list or a section; check the brackets"
        self._refuse(node, path, text)
        return REFUSED

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        kind, convert = SCALARS.get(node.tag, ("", None))
        text = node.value if isinstance(node, yaml.ScalarNode) else None
        if convert is None or text is None:
            tag = node.tag.replace(TAG, "!!")
            self._refuse(node, path, f"the tag {tag} is not allowed here; write a plain value without it")
            return REFUSED
        if kind == "a whole number" and len(text) > MAX_DIGITS:
            self._refuse(node, path, TOO_LONG)
            return REFUSED
        try:
            return convert(text)
        except (ValueError, KeyError):
            self._refuse(node, path, f"{show_key(text)!r} is not {kind}")
            return REFUSED

    def _refuse(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.document.problems.add(self._place(node), path, text)

    def _count(self, node: yaml.Node, path: KeyPath) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise ConfigError(f"{self._place(node)}: {TOO_MANY}")
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"{self._place(node)}: {TOO_DEEP}")

    def _place(self, node: yaml.Node) -> Place:
        if not self._numbered:
            return Place(self._source)
        return Place(self._source, node.start_mark.line + 1, node.start_mark.column + 1)
