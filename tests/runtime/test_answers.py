from __future__ import annotations

import asyncio

import pytest

from dist_train.rules.messages import FIRST, Reply
from dist_train.runtime.answers import Answers
from dist_train.runtime.remote import Unreachable

COUNTED, DROPPED = Reply("counted", FIRST), Reply("dropped", FIRST)


def test_a_repeated_message_gets_the_same_answer_and_is_judged_once() -> None:
    async def both() -> list[Reply]:
        answers = Answers()
        first, new = answers.expect((0, 0, 1))
        assert new
        again, new = answers.expect((0, 0, 1))
        assert not new
        answers.give((0, 0, 1), COUNTED)
        answers.give((0, 0, 1), DROPPED)
        late, new = answers.expect((0, 0, 1))
        assert not new
        return [await first, await again, await late]

    assert asyncio.run(both()) == [COUNTED] * 3


def test_a_very_late_repeat_is_told_that_it_is_over_and_is_not_judged_again() -> None:
    async def said() -> list[bool]:
        """Return who is new: one with an answer long past, one with the newest, and one that is waiting."""
        answers = Answers()
        answers.expect((0, 0, 1))
        answers.expect((1, 0, 1))
        answers.give((0, 0, 1), COUNTED)
        answers.give((1, 0, 1), COUNTED)
        answers.expect((0, 0, 2))
        late, _ = answers.expect((0, 0, 1))
        assert (await late).outcome == "ended"
        return [answers.expect(key)[1] for key in ((0, 0, 1), (1, 0, 1), (0, 0, 2))]

    assert asyncio.run(said()) == [False, False, False]


def test_a_message_that_could_not_be_judged_may_come_again() -> None:
    async def twice() -> bool:
        answers = Answers()
        first, _ = answers.expect((0, 0, 1))
        answers.decline((0, 0, 1), Unreachable("lost on its way"))
        with pytest.raises(Unreachable):
            await first
        return answers.expect((0, 0, 1))[1]

    assert asyncio.run(twice())


def test_nobody_need_wait_for_an_answer() -> None:
    Answers().give((0, 0, 1), COUNTED)


def test_a_message_that_is_not_answered_yet_is_not_forgotten() -> None:
    async def again() -> bool:
        answers = Answers()
        answers.expect((0, 0, 1))
        answers.expect((0, 0, 2))
        return answers.expect((0, 0, 1))[1]

    assert not asyncio.run(again())


def test_of_a_process_that_is_gone_nothing_is_kept_and_whoever_waits_is_told() -> None:
    async def told() -> list[bool]:
        answers = Answers()
        waiting, _ = answers.expect((0, 1, 1))
        answers.expect((0, 2, 0))
        answers.forget(0, 1)
        assert (await waiting).outcome == "ended"
        return [answers.expect((0, 2, 0))[1], answers.expect((1, 0, 0))[1]]

    assert asyncio.run(told()) == [False, True]


def test_a_process_that_is_gone_meanwhile_may_still_be_declined() -> None:
    async def gone() -> None:
        answers = Answers()
        answers.expect((0, 0, 1))
        answers.forget(0, 0)
        answers.decline((0, 0, 1), Unreachable("lost on its way"))

    asyncio.run(gone())
