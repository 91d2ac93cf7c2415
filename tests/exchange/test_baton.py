"""Tests of threads that take turns: one runs at a time, in the order that a schedule sets."""

from __future__ import annotations

import threading

import pytest

from dist_train.exchange import baton
from dist_train.exchange.baton import Move, Runner, in_step, one_by_one, script, seeded


def talk(number):
    return Move(number, goes_on=False)


def go_on(number):
    return Move(number, goes_on=True)


class TestSchedules:
    def test_in_step_all_move_once_a_round(self):
        choose = in_step()
        moves = [talk(0), go_on(1), talk(3)]
        assert [choose(moves).member for _ in range(5)] == [0, 1, 3, 0, 1]

    def test_in_step_passes_over_those_who_wait(self):
        choose = in_step()
        assert choose([talk(0), talk(1), talk(2)]).member == 0
        assert choose([talk(0), talk(2)]).member == 2
        assert choose([talk(1)]).member == 1

    def test_one_by_one_lets_the_answered_go_on_first(self):
        choose = one_by_one()
        assert choose([talk(0), talk(1)]) == talk(0)
        assert choose([go_on(0), talk(1)]) == go_on(0)
        assert choose([talk(0), talk(1)]) == talk(1)
        assert choose([talk(0), go_on(1)]) == go_on(1)
        assert choose([talk(0), talk(1)]) == talk(0)

    def test_chance_is_the_same_every_time(self):
        moves = [talk(number) for number in range(5)]
        first, second = ([choose(moves) for _ in range(20)] for choose in (seeded(3), seeded(3)))
        assert first == second
        assert len(set(first)) == 5

    def test_a_script_comes_before_another_schedule(self):
        choose = script([2, 2, 0], in_step())
        moves = [talk(0), talk(1), talk(2)]
        assert [choose(moves).member for _ in range(5)] == [2, 2, 0, 0, 1]

    def test_a_script_refuses_who_cannot_move(self):
        with pytest.raises(ValueError, match="wants member 1 to move"):
            script([1])([talk(0)])


class TestRunners:
    def test_one_thread_runs_at_a_time_and_only_when_it_is_moved(self):
        noted = []

        def body(name):
            for number in range(2):
                noted.append((name, number))
                runners[name].hand_back()

        runners = {name: Runner(name, lambda name=name: body(name)) for name in "ab"}
        assert noted == []
        for name in "abba":
            runners[name].move()
        assert noted == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
        assert not runners["a"].done
        for runner in runners.values():
            runner.move()
        assert runners["a"].done

    def test_whoever_moves_it_hears_what_went_wrong(self):
        def fail():
            raise OSError("no disk")

        runner = Runner("a", fail)
        with pytest.raises(OSError, match="no disk"):
            runner.move()
        assert runner.done

    @pytest.mark.parametrize("moves", [0, 1, 2])
    def test_an_ended_thread_stops_where_it_stands_and_is_gone(self, moves):
        noted = []

        def body():
            try:
                runner.hand_back()
                noted.append("went on")
            finally:
                noted.append("left")

        before = threading.active_count()
        runner = Runner("a", body)
        for _ in range(moves):
            runner.move()
        runner.end()
        runner.end()
        assert noted == [[], ["left"], ["went on", "left"]][moves]
        assert runner.done
        assert threading.active_count() == before

    def test_a_baton_that_does_not_come_back_is_an_error(self, monkeypatch):
        monkeypatch.setattr(baton, "LIMIT_S", 0.01)
        gate = threading.Event()
        runner = Runner("member 3", gate.wait)
        with pytest.raises(baton.TrainingError, match="member 3 has kept the baton"):
            runner.move()
        gate.set()
        monkeypatch.setattr(baton, "LIMIT_S", 10.0)
        runner.end()
