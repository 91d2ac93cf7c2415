"""From a tree as the user wrote it to a Config, or to everything that is wrong with it."""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dist_train.config import shape
from dist_train.config.combinations import Contradictions
from dist_train.config.problems import ROOT, Document, KeyPath, dotted, one_line
from dist_train.config.schema import Config

# The longest part of a wrong value that a message repeats.
SHOWN = 60
# A key that is a number, written as text.
DIGITS = re.compile(r"[0-9]{1,18}")
# Floats below this are whole numbers exactly when they look so.
EXACT = 2.0**53


def expand(value: Any, annotation: Any = Config) -> Any:
    """Write shorthands out in full: a bare word where a section is expected means {tag: word}."""
    if isinstance(value, str):
        key = shape.shorthand(annotation)
        return {key: value} if key else value
    section = shape.section_of(annotation, value)
    if section is None or not isinstance(value, dict):
        return value
    known = shape.keys(section)
    return {key: expand(child, known[key]) if key in known else child for key, child in value.items()}


def check(document: Document) -> Config:
    """Make the Config, or raise ConfigError with every problem of the document.

    Checks across the keys of a section are made once each of its keys is right by itself.
    """
    checker = _Checker(document)
    tree = checker.repair(document.tree, Config, ROOT)
    config = None
    try:
        config = Config.model_validate(tree, strict=True)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            checker.explain(detail, tree)
    document.problems.raise_any()
    assert config is not None, "a refused configuration has at least one problem"
    return config


class _Checker:
    def __init__(self, document: Document) -> None:
        self._origins = document.origins
        self._problems = document.problems

    def repair(self, value: Any, annotation: Any, path: KeyPath) -> Any:
        """Report unknown keys and tags, and put what was probably meant in their place.

        One misspelt name so hides no other problem and causes no second one.
        """
        if not isinstance(value, dict):
            return tuple(value) if isinstance(value, list) and shape.is_list(annotation) else value
        union = shape.variants(annotation)
        if union is not None:
            value = self._repair_tag(value, union, path)
        section = shape.section_of(annotation, value)
        if section is None and shape.is_numbered(annotation):
            return self._numbered_keys(value, path)
        if section is None:
            return self._text_keys(value, path) if annotation is not Any else value
        if shape.is_open(section):
            value = self._text_keys(value, path)
        result: dict[str, Any] = {}
        known = shape.keys(section)
        for key, child in value.items():
            if key in known:
                result[key] = self.repair(child, known[key], (*path, key))
            elif shape.is_open(section):
                result[key] = child
            elif (meant := self._unknown_key(key, section, union, path)) and meant not in value:
                self._origins.rename((*path, key), (*path, meant))
                self._problems.settle((*path, meant))
                result[meant] = self.repair(expand(child, known[meant]), known[meant], (*path, meant))
        return result

    def _repair_tag(self, value: dict[Any, Any], union: shape.Variants, path: KeyPath) -> dict[Any, Any]:
        tag = (*path, union.tag)
        found = value.get(union.tag)
        if union.tag not in value:
            text = f"missing; give one of {', '.join(union.sections)}"
            self._problems.add(self._origins.key(path), tag, text)
        elif not isinstance(found, str) or found not in union.sections:
            self._problems.add(self._origins.value(tag), tag, _not_a_choice(found, list(union.sections)))
            meant = shape.nearest(found, union.sections) if isinstance(found, str) else None
            return {**value, union.tag: meant} if meant else value
        return value

    def _text_keys(self, value: dict[Any, Any], path: KeyPath) -> dict[str, Any]:
        for key in value:
            if not isinstance(key, str):
                place = self._origins.key((*path, key))
                self._problems.add(place, (*path, key), "a key must be text; put it in quotes")
        return {key: child for key, child in value.items() if isinstance(key, str)}

    def _numbered_keys(self, value: dict[Any, Any], path: KeyPath) -> dict[int, Any]:
        """Make the keys whole numbers: in an override or in JSON they are text."""
        result: dict[int, Any] = {}
        for key, child in value.items():
            number = int(key) if isinstance(key, str) and DIGITS.fullmatch(key) else key
            if type(number) is not int or number < 0:
                text = "a key here must be a whole number of at least 0"
            elif number in result:
                text = "given twice; keep one of them"
            else:
                self._origins.rename((*path, key), (*path, number))
                result[number] = child
                continue
            self._problems.add(self._origins.key((*path, key)), (*path, key), text)
        return result

    def _unknown_key(
        self, key: Any, section: type[BaseModel], union: shape.Variants | None, path: KeyPath
    ) -> str | None:
        """Report an unknown key and return the one that was probably meant."""
        known = shape.keys(section)
        meant = shape.nearest(key, known) if isinstance(key, str) else None
        others = [] if union or not isinstance(key, str) else shape.elsewhere(key, Config)
        if meant:
            text = f"unknown key; did you mean {meant}?"
        elif others:
            text = f"unknown key; did you mean {' or '.join(others)}?"
        elif union:
            text = self._not_of_variant(section, union, path)
        else:
            text = f"unknown key; the keys here are {', '.join(known)}"
        self._problems.add(self._origins.key((*path, key)), (*path, key), text)
        return meant

    def _not_of_variant(self, section: type[BaseModel], union: shape.Variants, path: KeyPath) -> str:
        name = next(name for name, variant in union.sections.items() if variant is section)
        text = f"unknown key for {name}; its keys are {', '.join(shape.keys(section))}"
        tag = (*path, union.tag)
        if self._origins.overridden(tag) and not self._origins.overridden(path):
            place = self._origins.value(tag)
            text += f" ({place} chose {name}; {dotted(path)}={{{union.tag}: {name}, ...}} replaces it all)"
        return text

    def explain(self, detail: ErrorDetails, tree: Any) -> None:
        """Say one of pydantic's findings in this program's words, unless something already does."""
        if detail["type"].startswith("union_tag"):
            return  # found by repair, which can also say what was meant
        path, annotation = _locate(detail["loc"])
        missing = detail["type"] == "missing"
        if missing and isinstance(path[-1], int):
            # A list that is too short: what is wrong is the list, not the item it lacks.
            path, annotation = _locate(detail["loc"][:-1])
            missing = False
        if self._problems.settled(path):
            return
        if detail["type"] == "value_error" and isinstance(detail["ctx"]["error"], Contradictions):
            for key, text in detail["ctx"]["error"].found:
                self._problems.add(self._origins.key(key), key, text)
        elif detail["type"] == "value_error":
            self._problems.add(self._origins.key(path), path, str(detail["ctx"]["error"]))
        elif missing:
            text = f"missing; give {shape.expected(annotation)}"
            self._problems.add(self._origins.key(path[:-1]), path, text)
        else:
            self._problems.add(self._origins.value(path), path, _refusal(_at(tree, path), annotation))


def _locate(location: tuple[int | str, ...]) -> tuple[KeyPath, Any]:
    """The key path and annotation of pydantic's location, which also names the branches of unions."""
    path: KeyPath = ROOT
    annotation: Any = Config
    for part in location:
        union = shape.variants(annotation)
        section = shape.section_of(annotation)
        if union is not None:
            annotation = union.sections[str(part)]
        elif section is not None:
            path, annotation = (*path, part), shape.keys(section).get(str(part), Any)
        elif isinstance(part, int):
            path, annotation = (*path, part), shape.item(annotation, part)
        else:
            break
    return path, annotation


def _at(tree: Any, path: KeyPath) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def _refusal(found: Any, annotation: Any) -> str:
    words = shape.choices(annotation)
    if words and len(shape.branches(annotation)) == 1 and shape.variants(annotation) is None:
        return _not_a_choice(found, words)
    text = f"expected {shape.expected(annotation)}, found {show(found)}"
    if isinstance(found, str):
        meant = shape.nearest(found, words)
        number = not meant and "number" in text and _is_number(found)
        return text + (f"; did you mean {meant}?" if meant else "; remove the quotes" if number else "")
    if isinstance(found, float) and "number" in text:
        if not math.isfinite(found):
            return f"{text}; it must be finite"
        if "whole" in text and found.is_integer() and abs(found) < EXACT:
            return f"{text}; write {int(found)}"
    return text


def _not_a_choice(found: Any, words: list[str]) -> str:
    if not isinstance(found, str):
        return f"expected {'one of ' if len(words) > 1 else ''}{', '.join(words)}, found {show(found)}"
    if len(words) == 1:
        return f"{show(found)} is not available; available: {words[0]}"
    meant = shape.nearest(found, words)
    return f"{show(found)} is not one of {', '.join(words)}" + (f"; did you mean {meant}?" if meant else "")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def show(value: Any) -> str:
    """Write a wrong value as the user did, shortened."""
    if isinstance(value, dict):
        return "a section"
    text = _written(value)
    return one_line(text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}...")


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(show(child) for child in value[:SHOWN])}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
