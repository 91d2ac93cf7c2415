from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.rules.retention import to_prune


def test_the_newest_are_kept_in_whatever_order_they_are_listed():
    assert to_prune([400, 100, 300, 200], keep_last=2, keep_every=None) == [100, 200]


def test_multiples_are_kept_for_ever():
    assert to_prune([50, 100, 150, 200, 250, 300], keep_last=1, keep_every=100) == [50, 150, 250]


def test_nothing_is_pruned_before_there_are_enough():
    assert to_prune([], keep_last=3, keep_every=None) == []
    assert to_prune([10, 20, 30], keep_last=3, keep_every=None) == []
    assert to_prune([10, 20], keep_last=3, keep_every=7) == []


def test_keeping_none_prunes_all():
    assert to_prune([10, 20], keep_last=0, keep_every=None) == [10, 20]


@given(
    steps=st.lists(st.integers(0, 200)),
    keep_last=st.integers(1, 6),
    keep_every=st.none() | st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_the_newest_and_every_multiple_survive_and_nothing_else_does(steps, keep_last, keep_every):
    left = set(steps) - set(to_prune(steps, keep_last, keep_every))
    for step in set(steps):
        newer = {other for other in steps if other > step}
        is_multiple = keep_every is not None and step % keep_every == 0
        assert (step in left) == (len(newer) < keep_last or is_multiple)


@given(steps=st.sets(st.integers(0, 200), min_size=1), keep_every=st.none() | st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_pruning_as_one_goes_leaves_what_pruning_at_the_end_does(steps, keep_every):
    kept: list[int] = []
    for step in sorted(steps):
        kept = [*kept, step]
        gone = to_prune(kept, 2, keep_every)
        kept = [other for other in kept if other not in gone]
    gone = to_prune(sorted(steps), 2, keep_every)
    assert kept == [step for step in sorted(steps) if step not in gone]
