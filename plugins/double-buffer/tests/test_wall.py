"""The walls that were measured with the real clients (client facts 4.2), and what moves them."""

from __future__ import annotations

import pytest
from dbproxy_double_buffer.wall import Client, Observation, parse_version, wall, window

N, L, D, O, V = (2, 1, 329), (2, 1, 197), (2, 1, 112), (2, 0, 77), (1, 0, 128)  # noqa: E741


@pytest.mark.parametrize(
    ("version", "model", "size", "max_tokens", "low", "high"),
    [
        (N, "claude-opus-5-5", 1_000_000, 128_000, 966_532, 967_401),
        (N, "claude-sonnet-4-6", 1_000_000, 128_000, 166_406, 167_187),
        (L, "claude-sonnet-4-6", 1_000_000, 64_000, 166_406, 167_187),
        (D, "claude-sonnet-4-6", 1_000_000, 32_000, 166_000, 167_000),
        (O, "claude-sonnet-4-5-20250929", 200_000, 32_000, 154_000, 155_000),
        (V, "claude-sonnet-4-20250514", 200_000, 32_000, 154_500, 155_500),
    ],
)
def test_measured_walls(version, model, size, max_tokens, low, high):
    found = wall(Client(version, model, size, max_tokens))
    assert low <= found.tokens <= high
    assert found.proactive


@pytest.mark.parametrize("model", ["claude-haiku-4-5", "claude-sonnet-4-5", "claude-opus-4-5"])
def test_this_client_waits_for_the_refusal_with_some_models(model):
    found = wall(Client(N, model, 200_000, 64_000))
    assert (found.tokens, found.proactive) == (200_000, False)


def test_the_percent_override_lowers_and_never_raises():
    lowered = wall(Client(N, "claude-opus-5-5", 1_000_000, 128_000, {"CLAUDE_AUTOCOMPACT_PCT_OVERRIDE": "50"}))
    assert lowered.tokens == 490_000
    same = wall(Client(N, "claude-opus-5-5", 1_000_000, 128_000, {"CLAUDE_AUTOCOMPACT_PCT_OVERRIDE": "100"}))
    assert same.tokens == 967_000


def test_the_window_variable_sets_any_wall():
    variables = {"CLAUDE_CODE_AUTO_COMPACT_WINDOW": "200000"}
    assert wall(Client(N, "claude-opus-5-5", 1_000_000, 128_000, variables)).tokens == 167_000
    assert wall(Client(N, "claude-haiku-4-5", 200_000, 64_000, variables)).tokens == 167_000
    assert wall(Client(N, "x", 0, 0, {"CLAUDE_CODE_AUTO_COMPACT_WINDOW": "7"})).tokens == 100_000 - 33_000


def test_what_was_observed_beats_the_rules():
    seen = [Observation(120_000, "auto", 1.0), Observation(130_000, "auto", 2.0), Observation(5_000, "manual", 3.0)]
    assert wall(Client(N, "claude-opus-5-5", 1_000_000), seen).tokens == 130_000


def test_a_client_that_was_told_not_to_compact():
    assert wall(Client(N, "claude-opus-5-5", 1_000_000, 0, {"DISABLE_AUTO_COMPACT": "1"})).never


@pytest.mark.parametrize("value", ["", "nonsense", "-5", "inf", "nan"])
def test_a_bad_variable_is_as_none(value):
    assert (
        wall(Client(N, "claude-opus-5-5", 1_000_000, 0, {"CLAUDE_CODE_AUTO_COMPACT_WINDOW": value})).tokens == 967_000
    )


def test_windows():
    assert window(Client(N, "claude-sonnet-5-5", 1_000_000, first_party=False)) == 200_000
    assert window(Client(N, "claude-sonnet-5-5[1m]", 1_000_000, first_party=False)) == 1_000_000
    assert window(Client(N, "claude-sonnet-4-6", 0, betas=frozenset({"context-1m-2025-08-07"}))) == 1_000_000
    assert window(Client(N, "claude-opus-5-5", 1_000_000, 0, {"CLAUDE_CODE_DISABLE_1M_CONTEXT": "true"})) == 200_000
    assert window(Client((), "somebody-elses", 0)) == 200_000


def test_versions():
    assert parse_version("claude-cli/2.1.329 (external, sdk-cli)") == N
    assert parse_version("python-httpx/0.28") == ()
