"""Who teaches whom among the replicas of a run, on which data, from when on and how much.

Anil et al. 2018, algorithm 1: some updates on the task's loss alone, then the agreement with the others as
well. All counts are of updates.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dist_train.rules.sampling import permutation, split

Topology = Literal["all", "ring", "pairs"]

# A part of the data must not depend on the order in which an epoch is drawn.
_PARTITION = 2**63
# Nor may a bootstrap sample: each replica draws it from a stream of its own, with this added to its number.
_BOOTSTRAP = 2**63
# What replicas' seeds are apart.
SEEDS_APART = 1_000_000
# How many times an interval a replica looks for newer teachers.
_LOOKS = 8


def replica_seed(seed: int, replica: int) -> int:
    """Return the seed of a replica's initialisation, data order and dropout: replica 0 has the run's.

    Far from those of other runs: two trainings with seeds 0 and 1 must have no replica in common.
    """
    return seed + SEEDS_APART * replica


def teachers_of(replica: int, replicas: int, topology: Topology) -> tuple[int, ...]:
    """Return the replicas that teach ``replica``, in order; raises ValueError where pairs leave one over."""
    match topology:
        case "all":
            return tuple(other for other in range(replicas) if other != replica)
        case "ring":
            return ((replica + 1) % replicas,) if replicas > 1 else ()
        case "pairs":
            if replicas % 2:
                raise ValueError(f"{replicas} replicas cannot be paired")
            return (replica ^ 1,)


def companions_of(replica: int, replicas: int, topology: Topology) -> tuple[int, ...]:
    """Return the replicas that keep step with ``replica`` where predictions are exchanged, it included."""
    if topology == "pairs":
        return tuple(sorted((replica, *teachers_of(replica, replicas, topology))))
    return tuple(range(replicas))


def weight_at(updates: int, weight: float, burn_in: int, ramp: int) -> float:
    """Return the weight of the agreement in the update after ``updates``: 0, then a line, then ``weight``."""
    if updates < burn_in:
        return 0.0
    return weight * min(1.0, (updates - burn_in + 1) / (ramp + 1))


def passes(before: int, after: int, every: int) -> bool:
    """Say whether a multiple of ``every`` lies above ``before`` updates, up to ``after``."""
    return after // every > before // every


def looks_every(interval: int) -> int:
    """Return the updates between two looks at what the others have posted."""
    return max(1, interval // _LOOKS)


def posts(before: int, after: int, interval: int, turn: int, newest: int) -> bool:
    """Say whether a group posts a snapshot of its replica, whose newest post is of ``newest``.

    Of the groups of a replica with a parameter server the first one posts (``turn`` 0); each later one steps
    in when those before it have left out a post, as they may be gone.
    """
    return passes(before, after, interval) and (turn == 0 or after - newest >= (1 + turn) * interval)


def teaches(taken_up: int, updates: int, max_age: int) -> bool:
    """Say whether a snapshot that was taken up after ``taken_up`` updates still teaches after ``updates``.

    Both counts are the student's own: the versions of a replica that is faster or slower do not say for how
    long it has been silent.
    """
    return updates - taken_up <= max_age


def rows_of(replica: int, replicas: int, size: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of a training set of ``size`` that are a replica's own, in ascending order.

    The parts are disjoint, near-equal and drawn at random from ``seed``, the same for all replicas: a file
    that is sorted by label must not give each replica labels of its own.
    """
    shuffled = permutation(seed ^ _PARTITION, 0, size)
    own = split(size, replicas)[replica]
    return np.sort(shuffled[own.start : own.stop])


def bootstrap_rows(replica: int, size: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of a training set of ``size`` that a replica is given, in ascending order.

    They are ``size`` rows drawn uniformly with replacement: some come several times, and a share of 1/e is
    left out (Breiman 1996, section 2). The draw is the same on every machine.
    """
    words = np.random.Philox(key=seed + (_BOOTSTRAP + replica) * 2**64).random_raw(size)
    # 64 bits modulo a size are uniform up to size / 2**64.
    return np.sort((words % np.uint64(size)).astype(np.int64))
