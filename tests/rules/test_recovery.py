from dist_train.rules.recovery import (
    Attempt,
    Failure,
    Limits,
    Restart,
    Stop,
    after_failure,
    culprit,
    fail_alike,
)

LIMITS = Limits(max_restarts=3, backoff_s=1.0, max_backoff_s=3.0)


def failure(step=0, rank=0, phase="forward", kind="RuntimeError", error="", at=0.0, killed=False):
    return Failure(rank, step, phase, kind, error or f"{kind}: boom", at, killed)


def attempts(*steps, started_from=0):
    """Attempts that fail at these steps, each for a reason of its own."""
    return [
        Attempt(started_from, failure(step, kind=f"Error{number}", killed=True))
        for number, step in enumerate(steps)
    ]


def test_the_first_failure_restarts_after_the_first_delay():
    assert after_failure(attempts(10), LIMITS) == Restart(1.0)


def test_the_delay_doubles_with_each_restart_in_vain_up_to_its_limit():
    delays = [after_failure(attempts(*steps), LIMITS) for steps in ([10], [10, 9], [10, 9, 8])]
    assert delays == [Restart(1.0), Restart(2.0), Restart(3.0)]


def test_the_budget_counts_restarts_without_progress():
    decision = after_failure(attempts(10, 9, 8, 7), LIMITS)
    assert decision == Stop("not restarting: 3 restarts (recovery.max_restarts) without progress")


def test_progress_refills_the_budget_and_resets_the_delay():
    assert after_failure(attempts(10, 9, 8, 11), LIMITS) == Restart(1.0)
    assert after_failure(attempts(10, 9, 8, 11, 7), LIMITS) == Restart(2.0)
    assert isinstance(after_failure(attempts(10, 9, 8, 11, 7, 6, 5), LIMITS), Stop)


def test_getting_as_far_as_before_is_no_progress():
    assert after_failure(attempts(10, 10), LIMITS) == Restart(2.0)


def test_a_thousand_restarts_with_progress_still_restart():
    assert after_failure(attempts(*range(1, 1001)), LIMITS) == Restart(1.0)


def test_a_huge_number_of_restarts_does_not_overflow_the_delay():
    limits = Limits(max_restarts=10_000, backoff_s=1.0, max_backoff_s=60.0)
    assert after_failure(attempts(*range(3000, 0, -1)), limits) == Restart(60.0)


def test_no_restarts_are_made_where_none_are_allowed():
    assert isinstance(after_failure(attempts(10), Limits(0, 1.0, 3.0)), Stop)


def test_the_same_step_failing_twice_stops():
    twice = [Attempt(400, failure(412, rank=1)), Attempt(400, failure(412, rank=1))]
    assert after_failure(twice, LIMITS) == Stop("not restarting: step 412 failed twice: RuntimeError: boom")


def test_the_same_step_failing_twice_stops_with_another_failure_in_between():
    again = [Attempt(400, failure(412)), Attempt(400, failure(405)), Attempt(400, failure(412))]
    assert isinstance(after_failure(again, LIMITS), Stop)


def test_the_same_error_counts_as_such_whichever_worker_reports_it_and_however_it_is_worded():
    first = failure(412, rank=0, error="RuntimeError: no answer for 30.1 s")
    second = failure(412, rank=1, error="RuntimeError: no answer for 30.2 s")
    assert isinstance(after_failure([Attempt(400, first), Attempt(400, second)], LIMITS), Stop)


def test_the_same_step_failing_otherwise_restarts():
    first = Attempt(400, failure(412))
    for other in (failure(412, kind="ValueError"), failure(413)):
        assert isinstance(after_failure([first, Attempt(400, other)], LIMITS), Restart)


def test_different_workers_killed_at_the_same_step_are_different_failures():
    killed = [Attempt(400, failure(412, rank, kind="SIGKILL", killed=True)) for rank in (0, 1, 0)]
    assert after_failure(killed[:2], LIMITS) == Restart(2.0)
    assert isinstance(after_failure(killed, LIMITS), Stop)


def test_an_error_in_the_first_start_up_stops_at_once():
    decision = after_failure([Attempt(0, failure(phase="starting"))], LIMITS)
    assert decision == Stop("not restarting: the workers failed before their first step")


def test_a_kill_in_the_first_start_up_restarts():
    killed = failure(phase="starting", kind="SIGKILL", killed=True)
    assert after_failure([Attempt(0, killed)], LIMITS) == Restart(1.0)


def test_an_error_in_a_later_start_up_restarts_once():
    first, start_up = Attempt(0, failure(7)), Attempt(5, failure(phase="starting"))
    assert after_failure([first, start_up], LIMITS) == Restart(2.0)
    decision = after_failure([first, start_up, start_up], LIMITS)
    assert decision == Stop("not restarting: the start-up failed twice: RuntimeError: boom")


def test_the_first_failure_in_time_is_the_culprit():
    first, second = failure(rank=1, at=1.0), failure(rank=0, at=2.0)
    assert culprit([second, first]) is first


def test_an_echo_of_a_failure_is_not_the_culprit_even_when_it_came_first():
    for text in (
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5",
        "Read error [127.0.0.1]:5: Connection reset by peer",
        "Timed out waiting 8000ms for recv operation to complete",
    ):
        echo, cause = failure(rank=0, error=text, at=1.0), failure(rank=1, at=2.0)
        assert culprit([echo, cause]) is cause


def test_a_killed_worker_is_the_culprit_before_the_echoes_of_its_death():
    echo = failure(rank=0, error="RuntimeError: Connection closed by peer", at=1.0)
    killed = failure(rank=1, kind="SIGKILL", error="killed by SIGKILL", at=1.2, killed=True)
    assert culprit([echo, killed]) is killed


def test_among_echoes_only_the_first_is_the_culprit():
    echoes = [failure(rank=r, error="Broken pipe", at=3.0 - r) for r in range(3)]
    assert culprit(echoes).rank == 2


def test_an_error_that_comes_back_is_given_up_even_when_each_attempt_gets_further():
    again = [Attempt(step - 10, failure(step)) for step in (20, 30, 40, 50)]
    assert after_failure(again[:3], LIMITS) == Restart(1.0)
    assert after_failure(again, LIMITS) == Stop("not restarting: the same error 4 times: RuntimeError: boom")


def test_machines_may_fail_as_often_as_they_like_while_the_run_gets_further():
    killed = [Attempt(step - 10, failure(step, kind="SIGKILL", killed=True)) for step in range(20, 200, 10)]
    assert after_failure(killed, LIMITS) == Restart(1.0)


class TestAWorkerWhileOthersGoOn:
    @staticmethod
    def killed(*work):
        """Kills in ever later steps, when the worker itself had got so much done."""
        return [
            Attempt(10 * number, failure(10 * number + 5, kind="SIGKILL", killed=True), done)
            for number, done in enumerate(work)
        ]

    def test_is_given_up_when_it_gets_nothing_done_however_far_the_others_get(self):
        delays = [after_failure(self.killed(*[0] * times), LIMITS) for times in (1, 2, 3)]
        assert delays == [Restart(1.0), Restart(2.0), Restart(3.0)]
        decision = after_failure(self.killed(0, 0, 0, 0), LIMITS)
        assert decision == Stop("not restarting: 3 restarts (recovery.max_restarts) without progress")

    def test_may_be_killed_as_often_as_it_likes_while_it_gets_something_done(self):
        assert after_failure(self.killed(*range(100)), LIMITS) == Restart(1.0)
        assert after_failure(self.killed(0, 0, 0, 7), LIMITS) == Restart(1.0)


class TestWorkersFailAlike:
    def test_when_all_fail_by_one_error_in_one_step(self):
        assert fail_alike([failure(1, rank=0), failure(1, rank=1)])

    def test_not_while_one_has_not_failed(self):
        assert not fail_alike([failure(1), None])

    def test_not_when_one_got_further_failed_otherwise_or_was_killed(self):
        assert not fail_alike([failure(1), failure(2)])
        assert not fail_alike([failure(1), failure(1, error="other")])
        assert not fail_alike([failure(1, killed=True), failure(1, killed=True)])

    def test_not_when_there_is_only_one_who_may_do_better_the_next_time(self):
        assert not fail_alike([failure(1)])
