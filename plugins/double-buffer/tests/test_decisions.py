"""The table of phases, the trigger, the breaker and the budget: pure, and every branch of it."""

from __future__ import annotations

import time

import pytest
from dbproxy_double_buffer.guards import DAY, FIRST_PAUSE, LONGEST_PAUSE, Breaker, Budget, retry
from dbproxy_double_buffer.phases import TRANSITIONS, Event, IllegalTransition, Phase, diagram, next_phase
from dbproxy_double_buffer.trigger import Answer, State, Thresholds, decide, log_budget
from dbproxy_double_buffer.wall import Wall

WALL = Wall(167_000, "rule")


def test_a_cycle_goes_round():
    phase = Phase.IDLE
    for event in (Event.THRESHOLD, Event.STARTED, Event.COMPLETED, Event.NEAR_WALL, Event.SERVED, Event.CONFIRMED):
        phase = next_phase(phase, event)
    assert phase is Phase.IDLE


def test_every_phase_can_be_reached_and_left():
    reached, border = {Phase.IDLE}, [Phase.IDLE]
    while border:
        phase = border.pop()
        for (before, _), after in TRANSITIONS.items():
            if before is phase and after not in reached:
                reached.add(after)
                border.append(after)
    assert reached == set(Phase)
    assert all(next_phase(phase, Event.RESET) is Phase.IDLE for phase in Phase)


@pytest.mark.parametrize(
    ("phase", "event"),
    [(Phase.IDLE, Event.SERVED), (Phase.CHECKPOINTING, Event.ROLLED_BACK), (Phase.IDLE, Event.COMPLETED)],
)
def test_what_the_table_does_not_hold_raises(phase, event):
    with pytest.raises(IllegalTransition):
        next_phase(phase, event)


def test_the_diagram_shows_the_table():
    text = diagram()
    assert text.startswith("stateDiagram-v2\n")
    assert text.count("-->") == 1 + sum(event is not Event.RESET for _, event in TRANSITIONS)


@pytest.mark.parametrize(
    ("phase", "tokens", "start", "ready"),
    [
        (Phase.IDLE, 49_000, False, False),
        (Phase.IDLE, 116_000, False, False),
        (Phase.IDLE, 117_000, True, False),
        (Phase.IDLE, 166_000, True, False),
        (Phase.CHECKPOINTING, 166_000, False, False),
        (Phase.WAL_ACTIVE, 120_000, False, False),
        (Phase.WAL_ACTIVE, 134_000, False, True),
        (Phase.SWAP_READY, 140_000, False, False),
        (Phase.WAL_ACTIVE, 160_000, True, True),
    ],
)
def test_thresholds(phase, tokens, start, ready):
    found = decide(State(phase, checkpoint_tokens=117_000), Answer(tokens), WALL, Thresholds())
    assert (found.start, found.ready, found.act) == (start, ready, True)


def test_a_million_tokens_have_a_wall_of_their_own():
    assert not decide(State(), Answer(600_000), Wall(967_000, "rule"), Thresholds()).start
    assert decide(State(), Answer(680_000), Wall(967_000, "rule"), Thresholds()).start


@pytest.mark.parametrize("status", ["allowed_warning", "rejected"])
def test_a_window_nearly_spent_is_only_watched(status):
    found = decide(State(), Answer(120_000, frozenset({"allowed", status})), WALL, Thresholds())
    assert (found.start, found.act) == (True, False)


def test_modes():
    assert not decide(State(), Answer(120_000), WALL, Thresholds("observe")).act
    assert decide(State(), Answer(120_000), WALL, Thresholds("off")).start is False
    assert decide(State(), Answer(120_000, passthrough=True), WALL, Thresholds()).start is False


def test_adaptive_starts_earlier_where_the_wall_is_near_in_time():
    fast = State(growth=400.0, summary_seconds=60.0)  # 87,000 tokens to go: 217 s
    slow = State(growth=400.0, summary_seconds=20.0)
    thresholds = Thresholds(adaptive=True)
    assert decide(slow, Answer(80_000), WALL, thresholds).start is False
    assert decide(State(growth=600.0, summary_seconds=60.0), Answer(80_000), WALL, thresholds).start is True
    assert decide(fast, Answer(80_000), WALL, Thresholds()).start is False


def test_the_clients_own_summary_is_not_paid_twice():
    assert decide(State(native=True), Answer(120_000), WALL, Thresholds()).start is False


def test_the_log_is_bounded_by_the_window():
    assert log_budget(Thresholds(), WALL) == 41_750
    assert log_budget(Thresholds(), Wall(967_000, "rule")) == 50_000


def test_a_breaker_opens_after_three_and_closes_again():
    breaker = Breaker()
    for _ in range(2):
        breaker = breaker.failed(100.0, "500")
        assert breaker.allows(100.0)
    breaker = breaker.failed(100.0, "500")
    assert not breaker.allows(100.0 + FIRST_PAUSE - 1)
    assert breaker.allows(100.0 + FIRST_PAUSE)
    for _ in range(20):
        breaker = breaker.failed(1000.0, "500")
    assert breaker.until == 1000.0 + LONGEST_PAUSE
    assert breaker.succeeded().allows(0.0)


def test_retry_after_is_never_undercut():
    assert not Breaker().failed(0.0, "429", retry_after=30.0).allows(29.0)
    assert retry(429, 1, retry_after=30.0).pause == 30.0
    assert not retry(429, 1, retry_after=3600.0).again


@pytest.mark.parametrize(("status", "again"), [(0, True), (529, True), (400, False), (401, False), (403, False)])
def test_which_failures_are_tried_again(status, again):
    assert retry(status, 1).again is again
    assert not retry(status, 3).again


def test_a_budget_holds_for_a_day():
    budget = Budget(1000).spent(900, 10.0)
    assert budget.allows(100, 20.0)
    assert not budget.allows(101, 20.0)
    assert budget.allows(1000, DAY + 1)
    assert Budget(0).spent(10**9, 0.0).allows(10**9, 0.0)


def test_a_decision_costs_little():
    state, answer, thresholds = State(), Answer(120_000), Thresholds()
    began = time.perf_counter()
    for _ in range(1000):
        decide(state, answer, WALL, thresholds)
    assert time.perf_counter() - began < 1.0  # a bound against accidents; the figure stands in the benchmark
