"""The reader against a file that the real store wrote, beside one that is being written, and against bad files."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

import captured
import pytest
import storekit
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.errors import DbproxyError
from dbproxy.model.link import Agent, Edge, RequestKind
from dbproxy.model.record import StreamPiece
from dbproxy.store.reader import GROUPS, Reader, id_at
from dbproxy.store.rows import AgentRow, ConversationRow, ExchangeRow, StreamRow, UnknownId, Unreadable, as_json
from dbproxy.store.tree import tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from captured import Captured


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return captured.fill(tmp_path_factory.mktemp("captured") / "dbproxy.sqlite")


@pytest.fixture
def reader(made: Captured) -> Iterator[Reader]:
    with Reader.open(made.path) as found:
        yield found


def names(made: Captured, rows: list[ExchangeRow]) -> list[str]:
    back = {id: name for name, id in made.ids.items()}
    return [back[row.id] for row in rows]


# ---- lists


def test_the_newest_exchanges_come_first_and_pages_join(made: Captured, reader: Reader) -> None:
    everything = reader.exchanges()
    assert names(made, everything) == list(reversed(made.ids))
    pages: list[ExchangeRow] = []
    before = None
    while page := reader.exchanges(before=before, limit=5):
        pages += page
        before = page[-1].id
    assert pages == everything


def test_following_gives_what_came_later_oldest_first(made: Captured, reader: Reader) -> None:
    assert names(made, reader.exchanges(after=made["after"])) == ["rewind", "other"]
    assert reader.exchanges(after=made["other"]) == []


def test_filters(made: Captured, reader: Reader) -> None:
    def found(**chosen: object) -> list[str]:
        return names(made, reader.exchanges(**chosen))  # type: ignore[arg-type]

    assert found(conversation=captured.OTHER) == ["other"]
    assert found(kind="title") == ["title"]
    assert found(kind=["title", "nested"]) == ["nested", "title"]
    assert found(kind=[]) == []
    assert found(outcome="error") == ["failed"]
    assert found(model="unknown") == ["compaction"]
    assert found(thread="a11") == ["scout"]
    assert found(branch=3) == ["rewind"]
    assert found(project="/home/user/farm") == ["other"]
    assert found(project="/home/user", limit=1) == ["other"]
    assert found(project="/home/use") == []
    assert len(found(project="")) == len(made.ids)
    assert found(account="nobody") == []
    assert found(state="open") == []
    assert found(since=captured.BEGAN + len(made.ids)) == ["other"]
    assert found(until=captured.BEGAN + 2) == ["first"]
    assert found(scope="scope1", limit=1) == ["other"]


def test_a_page_is_bounded_whatever_is_asked(reader: Reader) -> None:
    assert len(reader.exchanges(limit=0)) == 1
    assert len(reader.exchanges(limit=10**9)) == 12


def test_times_are_ranges_of_ids(made: Captured) -> None:
    assert id_at(captured.BEGAN + 1) <= made["first"] < id_at(captured.BEGAN + 1.001)
    assert id_at(-5.0) == "0" * 12
    assert id_at(1e30) == "f" * 12


# ---- one exchange


def test_all_that_is_known_about_one(made: Captured, reader: Reader) -> None:
    detail = reader.exchange(made["scout"])
    row = detail.exchange
    assert (row.thread, row.kind, row.edge, row.parent) == ("a11", "subagent", "spawn", made["second"])
    assert row.context_tokens == 21_100
    assert row.streamed is True
    assert detail.labels == {"team": "blue"}
    assert detail.request_headers[1] == ("x-app", "cli")
    assert detail.response_headers == (("request-id", "req_4"),)
    assert [(e.question, e.answer) for e in detail.evidence] == [
        ("session", captured.CONVERSATION),
        ("kind", "subagent"),
    ]
    assert detail.agent is not None
    assert detail.agent.label == "zebra-scout #1"
    assert detail.has_request
    assert detail.has_message
    assert not detail.has_stream
    assert reader.evidence(made["scout"]) == detail.evidence
    json.dumps(as_json(detail))


def test_ids_by_prefix_and_by_the_upstreams_names(made: Captured, reader: Reader) -> None:
    full = made["nested"]
    assert reader.resolve(full.upper()) == full
    assert reader.resolve("last") == made["other"]
    assert reader.resolve("req_6") == full
    assert reader.resolve(f"msg_{6:024}") == full
    with pytest.raises(UnknownId, match="several exchanges begin with"):
        reader.resolve(full[:3])
    for wrong in ("", "zz", "msg_nobody", "req_nobody", "%", "0'", "\ud800"):
        with pytest.raises(UnknownId, match="dbproxy log list"):
            reader.resolve(wrong)
    assert reader.resolve_conversation(captured.OTHER[:6]) == captured.OTHER
    assert reader.resolve_conversation("last") == captured.OTHER
    with pytest.raises(UnknownId, match="several conversations"):
        reader.resolve_conversation("0f3")


def test_bodies_answers_and_streams(made: Captured, reader: Reader) -> None:
    for name, id in made.ids.items():
        assert reader.request_body(id) == made.bodies[name]
    answer = reader.response_message(made["first"])
    assert answer is not None
    assert json.loads(answer)["content"][0]["text"] == "There are two zebras."
    assert reader.stream(made["first"]) == [StreamRow(1.0, b"event: ping\n"), StreamRow(2.5, b"data: {}\n\n")]
    assert reader.stream(made["second"]) is None


def test_history_is_what_the_model_saw_and_its_answer(made: Captured, reader: Reader) -> None:
    texts = [json.loads(message)["content"] for message in reader.history(made["second"])]
    assert texts[0] == "Please list the zebras in the shop"
    assert texts[-1] == [{"type": "text", "text": "Asking."}]
    assert len(texts) == 4
    assert len(reader.history(made["failed"])) == 5  # an error is no turn
    assert reader.messages(made["failed"]) == reader.history(made["failed"])


def test_a_threads_requests_are_joined_with_what_they_continue(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    with storekit.store_at(path) as store:
        store.append(storekit.opened(1, storekit.talk("one", "two", "three", thread={"type": "create"})))
        store.append(storekit.closed(1, "four", message_id="msg_a"))
        more = {"type": "continue", "previous_message_id": "msg_a"}
        store.append(storekit.opened(2, storekit.talk("five", thread=more)))
        store.append(storekit.closed(2, "six", message_id="msg_b"))
        more = {"type": "continue", "previous_message_id": "msg_b"}
        store.append(storekit.opened(3, storekit.talk("seven", thread=more)))
        store.append(storekit.opened(4, storekit.talk("x", thread={"type": "continue", "previous_message_id": "none"})))
        # A circle: nonsense, but no endless loop.
        for number, mine, other in ((5, "msg_l", "msg_m"), (6, "msg_m", "msg_l")):
            loop = {"type": "continue", "previous_message_id": other}
            store.append(storekit.opened(number, storekit.talk(f"y{number}", thread=loop)))
            store.append(storekit.closed(number, "z", message_id=mine))
        assert store.flush(10)
    with Reader.open(path) as reader:

        def said(number: int) -> list[str]:
            found = [json.loads(message)["content"] for message in reader.history(storekit.make_id(number))]
            return [text if isinstance(text, str) else text[0]["text"] for text in found]

        assert said(3) == ["one", "two", "three", "four", "five", "six", "seven"]
        assert said(2) == ["one", "two", "three", "four", "five", "six"]
        assert said(4) == ["x"]
        assert said(5) == ["y6", "z", "y5", "z"]


def test_bodies_that_are_no_messages_request(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    with storekit.store_at(path) as store:
        store.append(storekit.opened(1, b"\xff\x00 no JSON"))
        store.append(storekit.opened(2, None))
        store.append(storekit.closed(2, stream=(StreamPiece(1.0, b""), StreamPiece(1.0, b"\n\n"))))
        store.append(storekit.opened(3, b""))
        assert store.flush(10)
    with Reader.open(path) as reader:
        assert reader.request_body(storekit.make_id(1)) == b"\xff\x00 no JSON"
        assert reader.history(storekit.make_id(1)) == []
        assert reader.request_body(storekit.make_id(2)) is None
        assert reader.stream(storekit.make_id(2)) == [StreamRow(1.0, b""), StreamRow(1.0, b"\n\n")]
        assert reader.request_body(storekit.make_id(3)) == b""


# ---- conversations


def test_conversations_with_their_sums(made: Captured, reader: Reader) -> None:
    other, first = reader.conversations()
    assert (other.id, first.id) == (captured.OTHER, captured.CONVERSATION)
    assert first.title == "Zebras"
    assert first.exchanges == 11
    assert first.turns == 10
    assert first.errors == 1
    assert first.agents == 3
    assert first.branches == 3
    assert first.compactions == 1
    assert first.models == (captured.MODEL, "unknown-model")
    assert first.cost_usd == pytest.approx(0.0125 * 9)
    assert first.unpriced == 1
    assert first.context_tokens == 21_100
    assert first.latest == made["rewind"]
    assert reader.conversations(limit=1) == [other]
    assert reader.conversations(before=other.cursor) == [first]
    assert reader.conversations(before=first.cursor) == []
    assert reader.conversations(project="/home/user/shop/") == [first]
    assert reader.conversations(since=other.last) == [other]
    assert reader.conversations(account="nobody") == []
    with pytest.raises(UnknownId, match="cursor of the page before"):
        reader.conversations(before="nonsense")


def test_the_tree_of_a_conversation(made: Captured, reader: Reader) -> None:
    found = reader.conversation(captured.CONVERSATION[:8])
    assert [(b.number, names(made, list(b.exchanges))) for b in found.main.branches] == [
        (1, ["first", "second", "failed", "retried", "compaction"]),
        (2, ["after"]),
        (3, ["rewind"]),
    ]
    assert [agent.key for agent in found.main.agents] == ["a11", "a22"]
    assert [agent.key for agent in found.main.agents[0].agents] == ["a33"]
    assert names(made, list(found.asides)) == ["title"]
    json.dumps(as_json(found))


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "main", "a", "b", "c"]), st.integers(-1, 3)),
        max_size=12,
    ),
    st.dictionaries(
        st.sampled_from(["main", "a", "b", "c", "d"]),
        st.sampled_from(["", "main", "a", "b", "c", "d", "x"]),
        max_size=5,
    ),
)
def test_every_exchange_is_in_the_tree_once_whatever_the_links_say(
    places: list[tuple[str, int]], parents: dict[str, str]
) -> None:
    values = dict.fromkeys(ExchangeRow.__dataclass_fields__, "")
    rows = [
        ExchangeRow(**(values | {"id": str(n), "thread": thread, "branch": branch}))  # type: ignore[arg-type]
        for n, (thread, branch) in enumerate(places)
    ]
    agents = [AgentRow("c", thread, "", "", 0, parent, "") for thread, parent in parents.items()]
    conversation = ConversationRow(*[""] * len(ConversationRow.__dataclass_fields__))  # type: ignore[arg-type]
    found = tree(conversation, rows, agents)
    seen = [row.id for row in found.asides]
    waiting = [found.main]
    keys = []
    while waiting:
        thread = waiting.pop()
        keys.append(thread.key)
        seen += [row.id for branch in thread.branches for row in branch.exchanges]
        waiting += thread.agents
    assert sorted(seen) == sorted(row.id for row in rows)
    assert len(keys) == len(set(keys))
    assert set(parents) <= set(keys) | {"main"}


def test_agents_that_nest_without_end_are_still_shown(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    with storekit.store_at(path) as store:
        for n in range(1, 1500):
            agent = Agent(f"a{n:05}", parent_thread=f"a{n - 1:05}" if n > 1 else "main")
            link = storekit.link(n, thread=agent.thread, kind=RequestKind.NESTED, edge=Edge.SPAWN, agent=agent)
            store.append(storekit.opened(n, link=link))
        assert store.flush(20)
    with Reader.open(path) as reader:
        assert reader.conversation("c-1").conversation.agents == 1499


# ---- sums


def test_usage_by_everything(made: Captured, reader: Reader) -> None:
    (total,) = reader.usage_rows()
    assert (total.exchanges, total.errors, total.unpriced) == (12, 1, 1)
    assert total.cache_read == 20_000 * 11
    assert total.cost_usd == pytest.approx(0.0125 * 10)
    for name in GROUPS:
        rows = reader.usage_rows(by=[name])
        assert sum(row.exchanges for row in rows) == 12, name
        assert sum(row.input_tokens for row in rows) == total.input_tokens
    by = {row.keys[0]: row.exchanges for row in reader.usage_rows(by=["agent"])}
    assert by == {"main": 8, "zebra-scout": 1, "Explore": 1, "general-purpose": 1, "": 1}
    two = {row.keys for row in reader.usage_rows(by=["project", "model"])}
    assert ("/home/user/shop", "unknown-model") in two
    assert reader.usage_rows(since=captured.BEGAN + 1e6) == []
    assert reader.usage_rows(project="/home/user/farm")[0].exchanges == 1
    assert reader.usage_rows(kind="title", model="claude")[0].exchanges == 1
    with pytest.raises(ValueError, match="unknown grouping 'moon'"):
        reader.usage_rows(by=["moon"])


def test_days_come_in_order_and_are_local(made: Captured, reader: Reader) -> None:
    days = [row.keys for row in reader.usage_rows(by=["day", "kind"])]
    assert days == sorted(days, key=lambda keys: keys[0])
    assert days[0][0] == time.strftime("%Y-%m-%d", time.localtime(captured.BEGAN))


def test_limits(made: Captured, reader: Reader) -> None:
    (latest,) = reader.limits()
    assert (latest.window, latest.status, latest.utilization) == ("5h", "allowed", 0.25)
    assert latest.quota is None
    assert reader.limits(account="nobody") == []
    assert reader.limit_history("0123456789abcdef", "5h")[-1] == latest


def test_size(made: Captured, reader: Reader) -> None:
    size = reader.size()
    assert (size.exchanges, size.conversations, size.shed) == (12, 2, 0)
    assert size.body_bytes == sum(map(len, made.bodies.values()))
    assert size.file_bytes >= made.path.stat().st_size
    assert size.oldest == captured.BEGAN + 1


# ---- bad files, live files


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"does not exist. Start a session with `dbproxy claude`"):
        Reader.open(tmp_path / "none.sqlite")
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(Unreadable, match="nothing was captured yet"):
        Reader.open(tmp_path / "empty.sqlite")
    assert list(tmp_path.iterdir()) == [tmp_path / "empty.sqlite"]


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="cannot be read"):
        Reader.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("PRAGMA user_version = 99", "newer dbproxy.*Update dbproxy"),
        ("PRAGMA user_version = 0", "older dbproxy.*dbproxy start"),
        ("PRAGMA application_id = 7", "another program"),
    ],
)
def test_files_of_other_versions_are_refused(made: Captured, tmp_path: Path, change: str, says: str) -> None:
    copy = tmp_path / "copy.sqlite"
    shutil.copy(made.path, copy)
    connection = sqlite3.connect(copy)
    connection.execute(change)
    connection.close()
    with pytest.raises(Unreadable, match=says):
        Reader.open(copy)


def test_rubbish_and_damage_are_said_to_be_so(made: Captured, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.sqlite"
    rubbish.write_bytes(os.urandom(8192))
    with pytest.raises(Unreadable, match=r"damaged: .*dbproxy restart"):
        Reader.open(rubbish)
    torn = tmp_path / "torn.sqlite"
    data = bytearray(made.path.read_bytes())
    for at in range(4096, len(data), 97):
        data[at] ^= 0x55
    torn.write_bytes(data)
    with pytest.raises(DbproxyError, match=r"damaged|cannot be read"):
        Reader.open(torn).conversations()


def test_a_damaged_blob_names_its_exchange(made: Captured, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    shutil.copy(made.path, copy)
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.execute(
        "UPDATE blob SET data = x'00' WHERE id = (SELECT message FROM exchange WHERE id = ?)", [made["other"]]
    )
    connection.close()
    with Reader.open(copy) as reader:
        with pytest.raises(Unreadable, match=f"the answer of {made['other']} is damaged.*log verify"):
            reader.response_message("last")
        assert reader.request_body("last") == made.bodies["other"]


def test_a_query_that_takes_too_long_is_ended(made: Captured) -> None:
    with Reader.open(made.path, seconds=0.05) as reader:
        began = time.monotonic()
        with pytest.raises(Unreadable, match="took longer than"):
            reader.connection.rows(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
            )
        assert time.monotonic() - began < 5
        assert reader.exchanges(limit=1)


def test_reading_beside_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    with storekit.store_at(path) as store:
        store.append(storekit.opened(1, storekit.talk("one")))
        assert store.flush(10)
        with Reader.open(path) as reader:
            assert len(reader.exchanges()) == 1
            store.append(storekit.closed(1, "answer"))
            store.append(storekit.opened(2, storekit.talk("one", "answer", "two")))
            assert store.flush(10)
            assert [row.state for row in reader.exchanges()] == ["open", "closed"]
            with reader.connection.snapshot():
                assert len(reader.exchanges()) == 2
                store.append(storekit.opened(3, storekit.talk("three")))
                assert store.flush(10)
                assert len(reader.exchanges()) == 2
            assert len(reader.exchanges()) == 3


def test_a_file_that_was_put_aside_and_begun_anew_is_followed(made: Captured, tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    shutil.copy(made.path, path)
    with Reader.open(path) as reader:
        assert reader.request_body("last") == made.bodies["other"]
        path.rename(tmp_path / "aside")
        for companion in ("-wal", "-shm"):
            (tmp_path / f"db.sqlite{companion}").unlink(missing_ok=True)
        with pytest.raises(Unreadable, match="does not exist"):
            reader.exchanges()
        with storekit.store_at(path) as store:
            store.append(storekit.opened(1, storekit.talk("fresh")))
            assert store.flush(10)
            assert reader.request_body("last") == storekit.talk("fresh")


def test_threads_take_turns(made: Captured, reader: Reader) -> None:
    failed = []

    def read() -> None:
        try:
            for name, id in list(made.ids.items()) * 3:
                assert reader.request_body(id) == made.bodies[name]
                assert reader.conversation(captured.CONVERSATION).conversation.exchanges == 11
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed


def test_a_file_whose_folder_takes_no_index_of_the_log(made: Captured, tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    shutil.copy(made.path, path)
    (tmp_path / "db.sqlite-shm").mkdir()  # holds for root, too, unlike a folder without write permission
    with Reader.open(path) as reader:
        assert len(reader.exchanges()) == 12


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_no_text_breaks_a_lookup(made: Captured, text: str) -> None:
    with Reader.open(made.path) as reader:
        for look in (reader.exchange, reader.conversation, reader.request_body):
            with pytest.raises(UnknownId):
                look("zz" + text)
        reader.exchanges(before=text, conversation=text, model=text or None, project=text)
