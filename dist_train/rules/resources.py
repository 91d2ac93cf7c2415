"""Whether a cluster is large enough for a run, and what it lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Amounts by kind ("CPU", "GPU").
Resources = Mapping[str, float]


@dataclass(frozen=True)
class Bundle:
    """What ``name`` needs on a single node; every amount is above 0."""

    name: str
    needs: Resources


def missing(nodes: Sequence[Resources], bundles: Sequence[Bundle]) -> str | None:
    """Say what a cluster lacks that can never hold ``bundles``; None if an idle one holds them.

    ``nodes`` has what each node offers, used or not. Only a few bundles may need something else than the
    others: for those every way of placing them is tried.
    """
    if not nodes:
        return "the cluster has no nodes"
    needs = _sum([bundle.needs for bundle in bundles])
    has = _sum(nodes)
    lacks = {kind: needs[kind] - has.get(kind, 0) for kind in needs if needs[kind] > has.get(kind, 0)}
    if lacks:
        return (
            f"the cluster has {_text({kind: has.get(kind, 0) for kind in needs})}, "
            f"this run needs {_text(needs)}: {_text(lacks)} {_is(lacks)} missing"
        )
    for bundle in bundles:
        if not any(_times(node, bundle.needs) for node in nodes):
            return (
                f"{bundle.name} needs {_text(bundle.needs)} on one node, and the largest of {len(nodes)} has "
                f"{_text({kind: max(node.get(kind, 0) for node in nodes) for kind in bundle.needs})}"
            )
    if bundles and not _fit(nodes, bundles):
        return (
            f"this run needs {_named(bundles)}, each on one node, and the {len(nodes)} nodes of the cluster "
            "have no room for all of them"
        )
    return None


def occupied(free: Sequence[Resources], bundles: Sequence[Bundle]) -> str:
    """Say what a busy cluster has free of what a run needs; ``free`` is what nobody uses on each node."""
    needs, left = _sum([bundle.needs for bundle in bundles]), _sum(free)
    return f"{_text({kind: left.get(kind, 0) for kind in needs})} free of the {_text(needs)} needed"


def node_by_node(nodes: Sequence[str], bundles: Sequence[Resources]) -> list[int]:
    """Return places of bundles so that those of the same needs follow each other node by node.

    ``nodes[i]`` has bundle i; nodes come in the order in which they first occur. Needs stay where they are.
    """
    rank = {node: place for place, node in enumerate(dict.fromkeys(nodes))}
    order = list(range(len(bundles)))
    for bundle in {tuple(sorted(each.items())): each for each in bundles}.values():
        alike = [index for index, each in enumerate(bundles) if dict(each) == dict(bundle)]
        for index, chosen in zip(alike, sorted(alike, key=lambda each: rank[nodes[each]]), strict=True):
            order[index] = chosen
    return order


def _fit(nodes: Sequence[Resources], bundles: Sequence[Bundle]) -> bool:
    counts = Counter(tuple(sorted(bundle.needs.items())) for bundle in bundles)
    ((most, count),) = counts.most_common(1)
    others = [dict(needs) for needs in counts.elements() if needs != most]
    return _hold(nodes, others, dict(most), count)


def _hold(nodes: Sequence[Resources], others: Sequence[Resources], alike: Resources, count: int) -> bool:
    """Whether the nodes hold ``others``, wherever they have to lie, and ``count`` times what is alike."""
    if not others:
        return sum(_times(node, alike) for node in nodes) >= count
    first, *rest = others
    return any(
        _hold([*nodes[:place], _without(node, first), *nodes[place + 1 :]], rest, alike, count)
        for place, node in enumerate(nodes)
        if _times(node, first)
    )


def _times(node: Resources, needs: Resources) -> int:
    """Return how often a node has what is needed."""
    return min(int(node.get(kind, 0) // amount) for kind, amount in needs.items())


def _without(node: Resources, needs: Resources) -> Resources:
    return {kind: amount - needs.get(kind, 0) for kind, amount in node.items()}


def _named(bundles: Sequence[Bundle]) -> str:
    counts = Counter(f"{bundle.name} ({_text(bundle.needs)})" for bundle in bundles)
    return " and ".join(text if count == 1 else f"{count} times {text}" for text, count in counts.items())


def _sum(parts: Sequence[Resources]) -> dict[str, float]:
    kinds = dict.fromkeys(kind for part in parts for kind in part)
    return {kind: sum(part.get(kind, 0) for part in parts) for kind in kinds}


def _text(amounts: Resources) -> str:
    return (
        " and ".join(f"{count:g} {kind if count == 1 else f'{kind}s'}" for kind, count in amounts.items())
        or "nothing"
    )


def _is(amounts: Resources) -> str:
    return "is" if sum(amounts.values()) == 1 else "are"
