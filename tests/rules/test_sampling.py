from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dist_train.rules.sampling import (
    Cursor,
    Draw,
    Position,
    Run,
    advance,
    draw,
    micro_batches,
    parts_of,
    permutation,
    sample_seed,
    samples_in,
    section,
    split,
    updates_per_epoch,
)

sizes = st.integers(1, 200)
batches = st.integers(1, 250)
seeds = st.integers(0, 2**64 - 1)


def philox(low, high, size):
    """The first words of Philox 4x64-10 (Salmon et al. 2011), counted from 1, under the key (low, high)."""
    words, mask = [], 2**64 - 1
    for counter in range(1, size // 4 + 2):
        c0, c1, c2, c3 = counter, 0, 0, 0
        k0, k1 = low, high
        for _ in range(10):
            p0, p1 = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
            c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & mask, (p0 >> 64) ^ c3 ^ k1, p0 & mask
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        words += [c0, c1, c2, c3]
    return words[:size]


def walk(cursor, size, batch, last_batch, updates):
    """The draws of the next updates, and the cursor after them."""
    draws = []
    for _ in range(updates):
        draws.append(draw(cursor, size, batch, last_batch))
        cursor = advance(cursor, size, batch, last_batch)
    return draws, cursor


def at(epoch, offset):
    return Cursor(Position(epoch, offset))


def places(runs):
    """The runs' places one by one, as (epoch, place)."""
    return [(run.epoch, place) for run in runs for place in range(run.offset, run.offset + run.count)]


runs = st.lists(st.builds(Run, st.integers(0, 3), st.integers(0, 50), st.integers(1, 30)), max_size=6)


class TestPermutation:
    @given(seed=seeds, epoch=st.integers(0, 1000), size=st.integers(0, 500))
    @settings(max_examples=60, deadline=None)
    def test_it_holds_every_sample_once(self, seed, epoch, size):
        order = permutation(seed, epoch, size)
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(size))

    @given(seed=seeds, epoch=st.integers(0, 1000))
    @settings(max_examples=30, deadline=None)
    def test_it_depends_on_seed_and_epoch_alone(self, seed, epoch):
        order = permutation(seed, epoch, 300).tolist()
        assert order == permutation(seed, epoch, 300).tolist()
        assert order != permutation(seed, epoch + 1, 300).tolist()
        assert order != permutation((seed + 1) % 2**64, epoch, 300).tolist()

    def test_seed_and_epoch_do_not_trade_places(self):
        assert permutation(3, 5, 300).tolist() != permutation(5, 3, 300).tolist()
        assert permutation(3, 5, 300).tolist() != permutation(8, 0, 300).tolist()

    @given(seed=seeds, epoch=st.integers(0, 2**64 - 1))
    @settings(max_examples=20, deadline=None)
    def test_it_never_changes_because_it_sorts_the_words_of_a_published_cipher(self, seed, epoch):
        words = philox(seed, epoch, 18)
        assert permutation(seed, epoch, 18).tolist() == sorted(range(18), key=words.__getitem__)

    def test_every_sample_is_equally_likely_in_every_place(self):
        epochs, size = 4000, 6
        orders = np.stack([permutation(42, epoch, size) for epoch in range(epochs)])
        counts = np.stack([(orders == sample).sum(axis=0) for sample in range(size)])
        expected = epochs / size
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        # 25 degrees of freedom: beyond 52.6 with probability 0.001.
        assert chi_squared < 52.6

    @pytest.mark.parametrize(
        ("seed", "epoch", "name"), [(2**64, 0, "seed"), (-1, 0, "seed"), (0, -1, "epoch")]
    )
    def test_a_seed_or_epoch_out_of_range_is_refused_by_name(self, seed, epoch, name):
        with pytest.raises(ValueError, match=f"the {name} must be from 0"):
            permutation(seed, epoch, 5)


class TestDraws:
    @given(size=sizes, batch=batches)
    @settings(max_examples=60, deadline=None)
    def test_one_epoch_takes_every_place_once_and_ends_at_the_next(self, size, batch):
        draws, after = walk(at(4, 0), size, batch, "keep", updates_per_epoch(size, batch, "keep"))
        assert places(run for one in draws for run in one.runs) == [(4, place) for place in range(size)]
        assert all(one.count <= batch for one in draws)
        assert after == at(5, 0)

    @given(size=sizes, batch=batches)
    @settings(max_examples=60, deadline=None)
    def test_dropping_leaves_out_only_what_does_not_fill_a_batch(self, size, batch):
        assume(batch <= size)
        draws, after = walk(at(0, 0), size, batch, "drop", updates_per_epoch(size, batch, "drop"))
        assert [one.count for one in draws] == [batch] * (size // batch)
        assert after == at(1, 0)

    def test_the_last_update_of_an_epoch_is_short(self):
        assert draw(at(2, 96), 100, 32, "keep") == Draw((Run(2, 96, 4),))
        assert advance(at(2, 96), 100, 32, "keep") == at(3, 0)

    def test_a_position_at_the_end_of_an_epoch_draws_from_the_next(self):
        assert draw(at(2, 100), 100, 32, "keep") == Draw((Run(3, 0, 32),))
        assert draw(at(2, 96), 100, 32, "drop") == Draw((Run(3, 0, 32),))

    def test_a_batch_that_never_fills_is_refused(self):
        for ask in (draw, advance):
            with pytest.raises(ValueError, match="a batch of 11 samples never fills"):
                ask(at(0, 0), 10, 11, "drop")
        with pytest.raises(ValueError, match=r"train\.last_batch"):
            updates_per_epoch(10, 11, "drop")
        assert updates_per_epoch(10, 11, "keep") == 1

    def test_an_empty_training_set_is_refused(self):
        with pytest.raises(ValueError, match="the training set is empty"):
            draw(at(0, 0), 0, 4, "keep")

    @given(
        size=sizes, plans=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8)), min_size=1, max_size=8)
    )
    @settings(max_examples=60, deadline=None)
    def test_changing_the_batch_and_the_workers_loses_and_repeats_nothing(self, size, plans):
        cursor, taken = at(0, 0), Counter()
        while cursor.position.epoch < 2:
            batch, workers = plans[len(taken) % len(plans)]
            (run,) = draw(cursor, size, batch, "keep").runs
            order = permutation(9, run.epoch, size)[run.offset :][: run.count]
            for rank in range(workers):
                for piece in micro_batches(run.count, rank, workers, accumulate=2):
                    taken.update((run.epoch, int(order[place])) for place in piece)
            cursor = advance(cursor, size, batch, "keep")
        assert taken == {(epoch, sample): 1 for epoch in range(2) for sample in range(size)}


class TestUnfinishedRuns:
    WAITING = (Run(0, 90, 10), Run(1, 5, 3), Run(1, 20, 4))

    def test_they_come_first_in_their_order_and_are_split_where_an_update_is_full(self):
        draws, after = walk(Cursor(Position(1, 40), self.WAITING), 100, 8, "keep", 4)
        assert draws == [
            Draw((Run(0, 90, 8),)),
            Draw((Run(0, 98, 2), Run(1, 5, 3), Run(1, 20, 3))),
            # 17 samples: the last one of them is an update of its own, and nothing fresh joins it.
            Draw((Run(1, 23, 1),)),
            Draw((Run(1, 40, 8),)),
        ]
        assert after == at(1, 48)

    def test_what_an_update_leaves_of_them_still_waits(self):
        after = advance(Cursor(Position(1, 40), self.WAITING), 100, 12, "keep")
        assert after == Cursor(Position(1, 40), (Run(1, 7, 1), Run(1, 20, 4)))

    def test_dropping_short_batches_drops_none_of_them(self):
        draws, after = walk(Cursor(Position(1, 96), (Run(0, 90, 5),)), 100, 8, "drop", 2)
        assert draws == [Draw((Run(0, 90, 5),)), Draw((Run(2, 0, 8),))]
        assert after == at(2, 8)

    def test_the_epoch_that_they_are_the_end_of_is_over_with_them(self):
        assert advance(Cursor(Position(0, 100), (Run(0, 90, 8),)), 100, 8, "keep") == at(1, 0)

    @given(size=sizes, batch=batches, offset=st.integers(0, 199), waiting=runs)
    @settings(max_examples=60, deadline=None)
    def test_every_place_is_drawn_once_and_the_data_end_as_without_them(self, size, batch, offset, waiting):
        position = Position(2, offset % size)
        first = -(-samples_in(waiting) // batch)
        draws, after = walk(Cursor(position, tuple(waiting)), size, batch, "keep", first + 3)
        alone, end = walk(Cursor(position), size, batch, "keep", 3)
        assert places(run for one in draws[:first] for run in one.runs) == places(waiting)
        assert draws[first:] == alone
        assert after == end


class TestSections:
    @given(pieces=runs, start=st.integers(0, 60), count=st.integers(0, 60))
    @settings(max_examples=60, deadline=None)
    def test_a_section_holds_the_places_that_were_asked_for(self, pieces, start, count):
        cut = section(pieces, range(start, start + count))
        assert places(cut) == places(pieces)[start : start + count]
        assert all(run.count for run in cut)
        assert samples_in(cut) == len(places(cut))

    @given(count=st.integers(1, 40), parts=st.integers(1, 12))
    @settings(max_examples=60, deadline=None)
    def test_the_parts_of_a_run_are_near_equal_and_none_is_empty(self, count, parts):
        run = Run(3, 7, count)
        cut = parts_of(run, parts)
        assert places(cut) == places([run])
        assert len(cut) == min(parts, count)
        assert cut[0].count - cut[-1].count in (0, 1)


class TestSplit:
    @given(count=st.integers(0, 300), parts=st.integers(1, 40))
    @settings(max_examples=60, deadline=None)
    def test_the_parts_are_contiguous_and_near_equal_with_the_larger_first(self, count, parts):
        pieces = split(count, parts)
        assert [place for piece in pieces for place in piece] == list(range(count))
        lengths = [len(piece) for piece in pieces]
        assert len(lengths) == parts
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] - lengths[-1] <= 1

    def test_an_example(self):
        assert split(10, 4) == [range(3), range(3, 6), range(6, 8), range(8, 10)]


class TestMicroBatches:
    @given(count=st.integers(0, 200), workers=st.integers(1, 20), accumulate=st.integers(1, 5))
    @settings(max_examples=60, deadline=None)
    def test_all_workers_together_take_the_draw_exactly_once(self, count, workers, accumulate):
        pieces = [micro_batches(count, rank, workers, accumulate) for rank in range(workers)]
        assert [place for worker in pieces for piece in worker for place in piece] == list(range(count))
        assert all(len(worker) <= accumulate and all(worker) for worker in pieces)

    def test_a_worker_for_which_no_sample_is_left_gets_nothing(self):
        assert micro_batches(2, rank=2, workers=3, accumulate=2) == []
        assert micro_batches(2, rank=1, workers=3, accumulate=2) == [range(1, 2)]

    @given(per_pass=st.integers(1, 20), workers=st.integers(1, 6), accumulate=st.integers(1, 6))
    @settings(max_examples=60, deadline=None)
    def test_accumulating_cuts_a_full_draw_as_more_workers_would(self, per_pass, workers, accumulate):
        count = per_pass * workers * accumulate
        accumulated = [p for rank in range(workers) for p in micro_batches(count, rank, workers, accumulate)]
        wide = workers * accumulate
        distributed = [piece for rank in range(wide) for piece in micro_batches(count, rank, wide, 1)]
        assert accumulated == distributed


class TestSampleSeed:
    def test_no_two_samples_share_a_seed(self):
        seeds = {sample_seed(s, e, i) for s in range(5) for e in range(20) for i in range(100)}
        assert len(seeds) == 5 * 20 * 100
        assert all(0 <= seed < 2**64 for seed in seeds)

    def test_the_three_numbers_do_not_run_together(self):
        assert sample_seed(1, 23, 4) != sample_seed(12, 3, 4)
        assert sample_seed(1, 2, 3) != sample_seed(3, 2, 1)

    def test_every_bit_is_set_about_half_the_time(self):
        bits = Counter(bit for i in range(1000) for bit in range(64) if sample_seed(0, 0, i) >> bit & 1)
        assert len(bits) == 64
        # 5 standard deviations of a fair coin thrown 1000 times.
        assert all(abs(count - 500) < 79 for count in bits.values())

    def test_it_never_changes(self):
        """Recorded: another value would change the augmentation of every saved run."""
        assert sample_seed(0, 0, 0) == 11684132067157788011
