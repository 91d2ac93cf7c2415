"""What the server keeps: a run that was saved and resumed is the run that never was, in any mode."""

from __future__ import annotations

from collections import Counter

import pytest
import runs
import server_runs
import single_by_hand as hand
import torch
import toys
from torch.distributed import HashStore
from worker_group import Seat

from dist_train.core.checkpoint import SERVER, load_part
from dist_train.exchange.areas import areas
from dist_train.exchange.baton import in_step, one_by_one, seeded
from dist_train.exchange.segments import Segment
from dist_train.rules.ledger import Ledger
from dist_train.rules.sampling import samples_in
from dist_train.runtime.server_run import ledger_of

# 46 samples: in updates of 8 or 12, runs pass the end of an epoch with a short one after 6 and after 4.
UPDATES = 8
NOISY = {"task": f"{toys.__file__}:Noisy", "task_options": {"size": 46}}
ADAM = {"name": "adam", "lr": 0.01}
MODES = {
    "async": {"mode": "async", "workers": 1},
    "compensated": {"mode": "async", "workers": 1, "damping": {"kind": "delay_compensated"}},
    "backup": {"mode": "backup", "workers": 2},
    "bounded": {"mode": "bounded", "max_staleness": 0, "workers": 3, "server": {"shards": 2}},
    "local": {"mode": "bounded", "max_staleness": 0, "workers": 2, "outer": {"kind": "nesterov"}},
    "elastic": {"mode": "async", "workers": 1, "local_steps": 2, "outer": {"kind": "elastic"}},
}


@pytest.fixture
def run():
    with server_runs.running() as make:
        yield lambda parallel, steps=UPDATES, **sections: make(parallel, steps, **sections)


def assert_same_end(found, expected):
    """Compare all that a checkpoint would hold."""
    for each in (found, expected):
        each.take()
    left, right = found.server.parts(), expected.server.parts()
    assert left.keys() == right.keys()
    for name, part in left.items():
        assert part.values == right[name].values, name
        assert part.tensors.keys() == right[name].tensors.keys()
        for key, tensor in part.tensors.items():
            assert torch.equal(tensor, right[name].tensors[key]), (name, key)


class TestResuming:
    @pytest.mark.parametrize("update", [1, 4, 6])
    @pytest.mark.parametrize("mode", MODES)
    def test_at_any_update_a_run_goes_on_as_if_it_had_not_stopped(self, run, tmp_path, mode, update):
        whole = run(MODES[mode], **NOISY, optimizer=ADAM).go()
        stopped = run(MODES[mode], **NOISY, optimizer=ADAM).go_to(update)
        resumed = run(MODES[mode], origin=stopped.save(tmp_path), **NOISY, optimizer=ADAM).go()
        assert resumed.steps[0].version.number == update + 1
        assert_same_end(resumed, whole)

    def test_again_and_again(self, run, tmp_path):
        whole = run(MODES["backup"], optimizer=ADAM).go()
        origin = None
        for update in range(1, UPDATES):
            leg = run(MODES["backup"], optimizer=ADAM, origin=origin).go_to(update)
            origin = leg.save(tmp_path)
        assert_same_end(run(MODES["backup"], optimizer=ADAM, origin=origin).go(), whole)

    def test_on_other_slices(self, run, tmp_path):
        whole = run(MODES["async"], optimizer=ADAM).go()
        stopped = run(MODES["async"] | {"server": {"shards": 3}}, optimizer=ADAM).go_to(4)
        parallel = MODES["async"] | {"server": {"shards": 2}}
        assert_same_end(run(parallel, optimizer=ADAM, origin=stopped.save(tmp_path)).go(), whole)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_by_other_members_skips_no_sample_and_repeats_none(self, run, tmp_path, seed):
        train = {"epochs": 2, "batch_size": 4}
        legs, origin, trained = ((3, 5), (1, 9), (2, None)), None, Counter()
        for members, stop in legs:
            parallel = {"mode": "async", "workers": members}
            config = server_runs.config_of(parallel=parallel, train=train)
            leg = server_runs.Run(config, origin)
            try:
                leg.go(seeded(seed)) if stop is None else leg.go_to(stop, seeded(seed))
                trained.update(places(leg))
                origin = leg.save(tmp_path)
            finally:
                leg.close()
        assert trained == dict.fromkeys(((epoch, place) for epoch in (0, 1) for place in range(50)), 1)


def places(found):
    """Return every (epoch, place) that the run's updates trained on."""
    dealt = {}
    for action in found.twin.decisions:
        for work in getattr(getattr(action, "reply", None), "work", ()):
            dealt[work.lease.number] = work.lease
    leases = [dealt[each.push.lease] for step in found.steps for each in step.contributions]
    return [(each.epoch, each.offset + place) for each in leases for place in range(each.count)]


class TestASnapshot:
    @pytest.mark.parametrize("mode", ["async", "compensated", "bounded"])
    def test_shards_that_go_back_to_it_make_the_lost_updates_again(self, run, mode):
        whole = run(MODES[mode], optimizer=ADAM).go()
        server = MODES[mode].get("server", {}) | {"snapshot_every": 3}
        found = run(MODES[mode] | {"server": server}, optimizer=ADAM).go_to(5)
        start, state = found.snapshots[0]
        assert start.updates == 3
        found.load(start, state)
        found.twin.roll_back(start)
        found.go()
        assert [step.version.era for step in found.steps] == [0] * 5 + [1] * (UPDATES - 3)
        assert_same_end(found, whole)

    def test_an_area_holds_all_that_shards_go_on_from(self, run):
        found = run(MODES["compensated"], optimizer=ADAM).go_to(4)
        server = found.server
        found.take()
        with_memory = Segment.create(server.vectors.bytes)
        (area,) = areas(with_memory, server.vectors, 1)
        scalars = server.begin(area)
        state = found.copied()
        assert scalars == state.optimizer.scalars == {"step": 4.0}
        assert torch.equal(area.parameters, state.parameters)
        assert area.optimizer.keys() == {"exp_avg", "exp_avg_sq"}
        for key, vector in area.optimizer.items():
            assert torch.equal(vector, state.optimizer.vectors[key])
        assert torch.equal(area.mean_squares[0], state.mean_squares[0])
        assert area.mean_squares[0].any()
        with_memory.close()


class TestOtherModes:
    """A server's checkpoint is one of any mode: parameters, optimizer and place in the data carry over."""

    def sync(self, run_dir, steps, stop_at=None):
        config = server_runs.config_of(
            parallel={"mode": "sync", "workers": 1},
            train={"steps": steps, "batch_size": 4},
            optimizer=ADAM,
        )
        return runs.run(Seat(0, 1, HashStore()), config, run_dir, stop_at)

    def test_one_worker_goes_from_server_to_sync_and_back_bit_for_bit(self, run, tmp_path):
        run({"mode": "async"}, optimizer=ADAM).go_to(3).save(tmp_path)
        assert self.sync(tmp_path, UPDATES, stop_at=6) == 75
        back = run({"mode": "async"}, optimizer=ADAM, origin=tmp_path / "checkpoints" / "step_00000006").go()
        assert [step.version.number for step in back.steps] == list(range(7, UPDATES + 1))
        order = hand.by_hand.global_batches(hand.SEED, hand.SIZE, 4)
        expected = hand.trained(
            lambda groups: torch.optim.Adam(groups, 0.01, fused=True), [next(order) for _ in range(UPDATES)]
        )
        found = back.weights()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name

    def test_what_the_members_had_in_hand_is_trained_in_sync_once(self, run, tmp_path):
        ledger = tmp_path / "ledger"
        options = {"ledger": str(ledger)}
        parallel = {"mode": "async", "workers": 3}
        stopped = run(parallel, optimizer=ADAM).go_to(5, one_by_one())
        assert samples_in(stopped.twin.referee.dealer.unfinished) == 12
        stopped.save(tmp_path)
        done = set(places(stopped))
        config = server_runs.config_of(
            task_options=options,
            parallel={"mode": "sync", "workers": 1},
            train={"epochs": 1, "batch_size": 4},
            optimizer=ADAM,
        )
        assert runs.run(Seat(0, 1, HashStore()), config, tmp_path, None) == 0
        order = hand.by_hand.order(hand.SEED, 0, hand.SIZE)
        trained = [order[place] for _, place in done] + list(map(int, ledger.read_text().split()))
        assert Counter(trained) == dict.fromkeys(range(hand.SIZE), 1)

    def test_the_members_buffers_are_workers_parts(self, run, tmp_path):
        found = run({"mode": "async", "workers": 2}, optimizer=ADAM, **NOISY).go()
        path = found.save(tmp_path)
        own = [load_part(path, f"rank_0000{rank}").tensors["buffers.1.running_mean"] for rank in (0, 1)]
        shared = load_part(path, "state").tensors["model.1.running_mean"]
        assert not torch.equal(*own)
        torch.testing.assert_close(shared, (own[0].double() + own[1].double()).float() / 2)

    def test_a_checkpoint_has_the_buffers_that_belong_to_its_state(self, run):
        found = run({"mode": "async", "workers": 2}, optimizer=ADAM, **NOISY).go()
        then = tuple(own.clone() for own in found.server.statistics)
        found.server.take(found._area, found.export(found._area), then)
        expected = {name: dict(part.tensors) for name, part in found.server.parts().items()}
        for own in found.server.statistics:
            own.fill_(float("nan"))
        for name, part in found.server.parts().items():
            for key, tensor in part.tensors.items():
                assert torch.equal(tensor, expected[name][key]), (name, key)
                assert tensor.isfinite().all()

    def test_more_members_than_before_share_the_buffers_round_about(self, run, tmp_path):
        path = run({"mode": "async", "workers": 2}, optimizer=ADAM, **NOISY).go().save(tmp_path)
        more = run({"mode": "async", "workers": 3}, optimizer=ADAM, origin=path, **NOISY)
        first, second, third = more.server.statistics
        assert torch.equal(first, third)
        assert not torch.equal(first, second)

    def test_an_outer_optimizer_is_kept_beside_the_inner_one_s(self, run, tmp_path):
        path = run(MODES["local"], optimizer=ADAM).go_to(3, in_step()).save(tmp_path)
        part = load_part(path, SERVER)
        assert set(part.tensors) == {"outer.momentum_buffer"}
        assert part.tensors["outer.momentum_buffer"].any()
        assert load_part(path, "state").values["counted"]["updates"] == 3

    def test_counts_come_through_a_synchronous_phase(self, run, tmp_path):
        parallel = {"mode": "async", "workers": 3}
        found = run(parallel, optimizer=ADAM).go_to(5, one_by_one())
        ledger = Ledger(hand.SIZE)
        for epoch, place in places(found):
            ledger.trained(epoch, place, 1)
        found.server.counts = {"ledger": ledger.to_state(), "tally": {"gradients": 5}}
        found.save(tmp_path)
        for stop_at in (7, 9):
            assert self.sync(tmp_path, 12, stop_at) == 75
        back = run(parallel, optimizer=ADAM, origin=tmp_path / "checkpoints" / "step_00000009")
        assert back.server.counts["tally"] == {"gradients": 5}
        now = ledger_of(back.server.counts, back.start, hand.SIZE)
        samples = 9 * 4
        assert now.summary() == [{"epochs": [0, 0], "samples": {"0": hand.SIZE - samples, "1": samples}}]
        assert load_part(back.save(tmp_path), "state").values["counted"]["carried"] == {}

    def test_counts_come_back_as_they_were(self, run, tmp_path):
        found = run(MODES["async"], optimizer=ADAM).go_to(3)
        found.server.counts = {"tally": {"gradients": 3}}
        path = found.save(tmp_path)
        again = run(MODES["async"], optimizer=ADAM, origin=path)
        assert again.server.counts == {"tally": {"gradients": 3}}
        assert again.start.updates == 3
