"""What linking is told of stored conversations, and that a failing file tells it nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import captured
import storekit
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.model.link import Agent, Edge, Point, RequestKind
from dbproxy.store.history import StoreHistory

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from dbproxy.model.linking.history import History


def chain(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_conversation_comes_back_as_it_was_linked(tmp_path: Path) -> None:
    made = captured.fill(tmp_path / "db.sqlite")
    history: History = StoreHistory(made.path)
    found = history.conversation(captured.CONVERSATION)
    assert found is not None
    assert (found.account, found.client) == ("0123456789abcdef", "claude-cli/2.1.329")
    by = {exchange.id: exchange for exchange in found.exchanges}
    assert list(by) == [id for name, id in made.ids.items() if name != "other"]
    retried = by[made["retried"]]
    assert (retried.parent, retried.edge, retried.attempt, retried.outcome) == (made["failed"], Edge.RETRY, 2, "ok")
    assert (retried.kind, retried.thread, retried.branch, retried.streamed) == (RequestKind.MAIN, "main", 1, True)
    assert retried.request_id == "req_8"
    assert by[made["compaction"]].compaction == "auto"
    assert found.agents[0] == Agent("a11", type="custom", name="zebra-scout", number=1, tool_use_id="toolu_1")
    assert [agent.thread for agent in found.agents] == ["a11", "a22", "a33"]
    assert history.conversation(captured.CONVERSATION[:8]) is None
    assert history.answered(f"msg_{8:024}") == (captured.CONVERSATION, made["retried"])
    assert history.answered("") is None
    assert history.answered("msg_x") is None
    answer = history.message(made["retried"])
    assert answer is not None
    assert json.loads(answer)["content"][0]["text"] == "They said two."
    assert history.message("none") is None


def test_points_are_those_of_the_latest_link(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    with storekit.store_at(path) as store:
        store.append(storekit.opened(1, link=storekit.link(1, points=(Point(1, chain(1)), Point(2, chain(2))))))
        store.append(storekit.opened(2, link=storekit.link(2, branch=2, points=(Point(2, chain(3)),))))
        assert store.flush(10)
        history = StoreHistory(path)
        found = history.conversation("c-1")
        assert found is not None
        assert [(p.branch, p.depth, p.chain, p.exchange) for p in found.points] == [
            (1, 1, chain(1), storekit.make_id(1)),
            (1, 2, chain(2), storekit.make_id(1)),
            (2, 2, chain(3), storekit.make_id(2)),
        ]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["c-1", "c-2", "c-3"]), st.sampled_from(["a", "b"]), st.integers(1, 6)), max_size=8
    ),
    st.lists(st.integers(1, 6), unique=True),
    st.integers(1, 3),
)
def test_holding_gives_the_deepest_first_then_the_newest(
    tmp_path_factory: pytest.TempPathFactory,
    stored: list[tuple[str, str, int]],
    asked: list[int],
    limit: int,
) -> None:
    path = tmp_path_factory.mktemp("holding") / "db.sqlite"
    accounts: dict[str, str] = {}
    last: dict[str, int] = {}
    points: dict[str, set[int]] = {}
    with storekit.store_at(path) as store:
        for number, (conversation, account, point) in enumerate(stored, 1):
            link = storekit.link(number, conversation, branch=number, points=(Point(1, chain(point)),))
            store.append(storekit.opened(number, account=account, link=link))
            accounts.setdefault(conversation, account)
            last[conversation] = number
            points.setdefault(conversation, set()).add(point)
        assert store.flush(10)
    expected = [
        conversation
        for point in asked
        for conversation in sorted(last, key=lambda name: -last[name])
        if accounts[conversation] == "a" and point in points[conversation]
    ]
    history = StoreHistory(path)
    found = history.holding([chain(point) for point in asked], account="a", limit=limit)
    assert list(found) == list(dict.fromkeys(expected))[:limit]


def test_thousands_of_hashes_are_asked_in_goes(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    with storekit.store_at(path) as store:
        for number, point in ((1, 4000), (2, 3), (3, 900)):
            link = storekit.link(number, f"c-{number}", points=(Point(1, chain(point)),))
            store.append(storekit.opened(number, account="a", link=link))
        assert store.flush(10)
    asked = [chain(number) for number in range(5000)]
    history = StoreHistory(path)
    assert list(history.holding(asked, account="a", limit=10)) == ["c-2", "c-3", "c-1"]
    assert list(history.holding(asked, account="a", limit=1)) == ["c-2"]
    assert list(history.holding([], account="a", limit=5)) == []
    assert list(history.holding([chain(3), chain(3)], account="a", limit=5)) == ["c-2"]


def test_nothing_is_known_of_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    history = StoreHistory(path)

    def knows_nothing() -> None:
        assert history.conversation("c-1") is None
        assert list(history.holding([chain(1)], account="", limit=5)) == []
        assert history.answered("msg_1") is None
        assert history.message("x") is None

    knows_nothing()
    assert not path.exists()
    path.write_bytes(b"no database" * 1000)
    knows_nothing()
    path.unlink()
    with storekit.store_at(path) as store:  # and what comes later is seen
        store.append(storekit.opened(1, link=storekit.link(1, points=(Point(1, chain(1)),))))
        assert store.flush(10)
        assert history.conversation("c-1") is not None
        assert list(history.holding([chain(1)], account="", limit=5)) == ["c-1"]
        assert history.conversation("\ud800") is None
    history.close()
    assert history.conversation("c-1") is not None
