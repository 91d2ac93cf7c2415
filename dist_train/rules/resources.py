"""Whether a cluster is large enough for a run, and what it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Resources = Mapping[str, float]


def missing(nodes: Sequence[Resources], bundles: Sequence[Resources]) -> str | None:
    """Say what a cluster lacks that can never hold ``bundles``; None if it may hold them.

    ``nodes`` has what each node offers, used or not, and each bundle lies on a single node; both count
    by kind ("CPU", "GPU"). Passing this is necessary, not sufficient: bundles may fit in sum and one by
    one, and yet not together.
    """
    if not nodes:
        return "the cluster has no nodes"
    needs = _sum(bundles)
    has = _sum(nodes)
    lacks = {kind: needs[kind] - has.get(kind, 0) for kind in needs if needs[kind] > has.get(kind, 0)}
    if lacks:
        return (
            f"the cluster has {_text({kind: has.get(kind, 0) for kind in needs})}, "
            f"this run needs {_text(needs)}: {_text(lacks)} {_is(lacks)} missing"
        )
    for bundle in bundles:
        if not any(all(node.get(kind, 0) >= count for kind, count in bundle.items()) for node in nodes):
            return (
                f"{_text(bundle)} are needed on one node, and the largest of {len(nodes)} has "
                f"{_text({kind: max(node.get(kind, 0) for node in nodes) for kind in bundle})}"
            )
    return None


def occupied(free: Sequence[Resources], bundles: Sequence[Resources]) -> str:
    """Say what a busy cluster has free of what a run needs; ``free`` is what nobody uses on each node."""
    needs, left = _sum(bundles), _sum(free)
    return f"{_text({kind: left.get(kind, 0) for kind in needs})} free of the {_text(needs)} needed"


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
