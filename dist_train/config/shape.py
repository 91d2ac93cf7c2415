"""What the schema allows at each place of the tree, and how to say so in plain words."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

# How alike two names must be (difflib's ratio) for one to be offered in place of the other.
ALIKE = 0.65
# How many keys of a section a message names to say what a section is.
KEYS_NAMED = 3

Model = type[BaseModel]


@dataclass(frozen=True)
class Variants:
    """A tagged union: the value of the key ``tag`` chooses one of ``sections``."""

    tag: str
    sections: dict[str, Model]


@cache
def keys(section: Model) -> dict[str, Any]:
    """The keys of a section in the schema's order, each with the annotation of its value."""
    return {name: Annotated[field.annotation, field] for name, field in section.model_fields.items()}


def is_open(section: Model) -> bool:
    """Whether further keys are passed on rather than refused."""
    return section.model_config.get("extra") == "allow"


def unwrap(annotation: Any) -> tuple[Any, tuple[FieldInfo, ...]]:
    """Split an annotation into the type itself and what the schema says about it."""
    if get_origin(annotation) is Annotated:
        bare, *notes = get_args(annotation)
        return bare, tuple(note for note in notes if isinstance(note, FieldInfo))
    return annotation, ()


def branches(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; for anything else the annotation itself."""
    bare, _ = unwrap(annotation)
    return get_args(bare) if get_origin(bare) in (Union, types.UnionType) else (annotation,)


def variants(annotation: Any) -> Variants | None:
    """The tagged union that ``annotation`` is, if it is one."""
    for branch in (annotation, *branches(annotation)):
        bare, notes = unwrap(branch)
        tag = next((note.discriminator for note in notes if isinstance(note.discriminator, str)), None)
        if tag is not None:
            sections = [member for member in get_args(bare) if _is_section(member)]
            return Variants(tag, {name: s for s in sections for name in choices(keys(s)[tag])})
    return None


def section_of(annotation: Any, value: Any = None) -> Model | None:
    """The section that ``annotation`` is; of a tagged union, the one that ``value`` has chosen."""
    if (union := variants(annotation)) is not None:
        chosen = value.get(union.tag) if isinstance(value, dict) else None
        return union.sections.get(chosen) if isinstance(chosen, str) else None
    return next((bare for bare in map(_bare, branches(annotation)) if _is_section(bare)), None)


def shorthand(annotation: Any) -> str | None:
    """The key that a bare word stands for: a union's tag, or a section's one required key if it is text."""
    if (union := variants(annotation)) is not None:
        return union.tag
    section = section_of(annotation)
    if section is None:
        return None
    required = [name for name, field in section.model_fields.items() if field.is_required()]
    return required[0] if len(required) == 1 and section.model_fields[required[0]].annotation is str else None


def choices(annotation: Any) -> list[str]:
    """The words that are allowed at this place: those of its Literals, or a tagged union's tags."""
    if (union := variants(annotation)) is not None:
        return list(union.sections)
    literals = [_bare(branch) for branch in branches(annotation)]
    found = [value for bare in literals if get_origin(bare) is Literal for value in get_args(bare)]
    return [value for value in found if isinstance(value, str)]


def is_list(annotation: Any) -> bool:
    return any(get_origin(_bare(branch)) is tuple for branch in branches(annotation))


def is_numbered(annotation: Any) -> bool:
    """Whether this is a section whose keys are whole numbers."""
    bare = _bare(annotation)
    return get_origin(bare) is dict and _bare(get_args(bare)[0]) is int


def item(annotation: Any, index: int) -> Any:
    """The annotation of a list's item, or of the value at a numbered key."""
    if is_numbered(annotation):
        return get_args(_bare(annotation))[1]
    for branch in branches(annotation):
        members = get_args(_bare(branch))
        if get_origin(_bare(branch)) is tuple and members:
            return members[0] if members[-1] is Ellipsis else members[min(index, len(members) - 1)]
    return Any


def expected(annotation: Any) -> str:
    """Say what is allowed: ``a whole number above 0 or null``."""
    if (union := variants(annotation)) is not None:
        text = f"a section with {union.tag}: {' | '.join(union.sections)}"
        return f"{text}, or null" if type(None) in branches(annotation) else text
    bare, notes = unwrap(annotation)
    described = next((note.description for note in notes if note.description), None)
    if described is not None:
        return described
    if len(members := branches(annotation)) > 1:
        return " or ".join(expected(member) for member in members)
    return _expected_one(bare, [limit for note in notes for limit in note.metadata])


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant."""
    plain = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), plain, n=1, cutoff=ALIKE)
    return plain[close[0]] if close else None


def elsewhere(name: str, root: Model) -> list[str]:
    """The dotted paths at which ``name`` is a key."""
    return sorted({path for path in _paths(root, "") if path.rpartition(".")[2] == name})


def _paths(section: Model, prefix: str) -> Iterator[str]:
    for name, annotation in keys(section).items():
        yield prefix + name
        union = variants(annotation)
        below = list(union.sections.values()) if union else [section_of(annotation)]
        for child in below:
            if child is not None:
                yield from _paths(child, f"{prefix}{name}.")


def _bare(annotation: Any) -> Any:
    return unwrap(annotation)[0]


def _is_section(bare: Any) -> bool:
    return isinstance(bare, type) and issubclass(bare, BaseModel)


WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def _expected_one(bare: Any, limits: list[Any]) -> str:
    if bare in (None, type(None)):
        return "null"
    if get_origin(bare) is Literal:
        values = [str(value) for value in get_args(bare)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if get_origin(bare) is tuple:
        return _expected_list(get_args(bare))
    if _is_section(bare):
        first = list(keys(bare))[:KEYS_NAMED]
        return f"a section ({', '.join(first)}{', ...' if len(keys(bare)) > KEYS_NAMED else ''})"
    if get_origin(bare) is dict:
        return "a section of options"
    words = WORDS.get(bare, str(bare))
    bounds = [
        f"{text} {getattr(limit, name):g}"
        for name, text in LIMITS.items()
        for limit in limits
        if hasattr(limit, name)
    ]
    pattern = next((limit.pattern for limit in limits if getattr(limit, "pattern", None)), None)
    if pattern is not None:
        return f"{words} that matches {pattern}"
    joined = " and ".join(bounds)
    return f"{words} of {joined}" if joined.startswith("at") else f"{words} {joined}".strip()


def _expected_list(members: tuple[Any, ...]) -> str:
    if members[-1] is Ellipsis:
        return f"a list (each item {expected(members[0])})"
    return f"a list of {len(members)} (each {expected(members[0])})"
