"""Names and ids that the other side takes, and the client's own back from them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model.codecs.naming import ToolNames, client_id, upstream_id

ALLOWED = re.compile(r"[A-Za-z0-9_-]{1,64}")
ANY = st.one_of(st.text(min_size=1, max_size=80), st.text("ab_-", min_size=1, max_size=80))


def test_a_name_that_can_stay_stays():
    assert ToolNames().out("mcp__files__read-all_2") == "mcp__files__read-all_2"


def test_case_17_a_name_of_71_characters_keeps_its_tail_and_comes_back():
    name = "mcp__a_server_with_a_long_name__a_tool_with_an_even_longer_name_than_it"
    names = ToolNames()
    short = names.out(name)
    assert len(name) == 71
    assert ALLOWED.fullmatch(short)
    assert "longer_name_than_it" in short
    assert names.back(short) == name


def test_case_18_names_that_begin_alike_stay_two():
    names = ToolNames(["n" * 64 + "one", "n" * 64 + "two"])
    assert names.out("n" * 64 + "one") != names.out("n" * 64 + "two")


def test_a_name_is_written_the_same_way_in_every_request():
    # A prompt cache depends on it.
    assert ToolNames().out("a.b") == ToolNames(["c.d"]).out("a.b")


def test_a_name_that_nobody_gave_out_stays_as_it_is():
    assert ToolNames(["Read"]).back("Invented") == "Invented"


@given(st.lists(ANY, max_size=6, unique=True), st.sampled_from([40, 64]))
def test_every_name_fits_and_comes_back(given_names, limit):
    names = ToolNames(given_names, limit=limit)
    short = [names.out(name) for name in given_names]
    assert all(ALLOWED.fullmatch(name) and len(name) <= limit for name in short)
    assert len(set(short)) == len(given_names)
    assert [names.back(name) for name in short] == given_names


def test_case_77_an_id_with_other_characters_goes_out_spelled_and_comes_back():
    id = client_id("call_ab:c/1")
    assert re.fullmatch("[A-Za-z0-9_-]+", id)
    assert upstream_id(id) == "call_ab:c/1"


@pytest.mark.parametrize("id", ["call_1", "toolu_01AbC", "chatcmpl-tool-1"])
def test_an_id_that_can_stay_stays_both_ways(id):
    assert client_id(id) == upstream_id(id) == id


def test_an_id_that_is_too_long_has_a_short_stand_in_that_is_always_the_same():
    long = "toolu_" + "x" * 80
    assert len(upstream_id(long, limit=40)) <= 40
    assert upstream_id(long, limit=40) == upstream_id(long, limit=40) != upstream_id(long + "y", limit=40)


@pytest.mark.parametrize("id", ["", "dbpid_", "dbpid_\u00e9", "dbpid_!", "dbpid_a"])
def test_an_id_that_only_looks_as_if_it_were_spelled_is_no_error(id):
    assert upstream_id(id)


@given(ANY)
def test_every_id_is_one_that_the_client_may_send_and_comes_back(id):
    spelled = client_id(id)
    assert re.fullmatch("[A-Za-z0-9_-]+", spelled)
    assert upstream_id(spelled, limit=1000) == id


@given(ANY, ANY)
def test_two_ids_never_become_one(one, other):
    assert (client_id(one) == client_id(other)) == (one == other)
