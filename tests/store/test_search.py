"""Search: any text is a query, hits are right, snippets show where and hide what is secret."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

import captured
import pytest
import storekit
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dbproxy.model.parts import search_text
from dbproxy.model.redact import redact_text
from dbproxy.store.reader import Reader
from dbproxy.store.rows import UnknownId
from dbproxy.store.search import Query, Term, fold, holds, might_hold, snippet, tokens, understand

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "sk-ant-api03-" + "Zq7" * 30


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "db.sqlite"
    texts = [
        "the quick brown fox jumps over the lazy dog",
        "brown the fox quick, and foxes more",
        "Ein Café in der Straße, größer als İstanbul; cafe\u0301 again",
        f"the key is {SECRET} and the word is marzipan",
        "foo_bar-baz.qux() in src/dbproxy/store/search.py",
        "中文字 and ①② and 𝔘𝔫𝔦",
        "never\0mind the \ud800 halves",
    ]
    with storekit.store_at(path, redact=lambda text: redact_text(text)[0]) as store:
        for number, text in enumerate(texts, 1):
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
            link = storekit.link(number, f"c-{number}")
            store.append(storekit.opened(number, body, project=f"/p/{number % 2}", link=link))
            store.append(storekit.closed(number, f"answer {number} about zebras"))
        assert store.flush(10)
    return path


def found(path: Path, query: str, **more: object) -> list[str]:
    with Reader.open(path) as reader:
        return [hit.conversation for hit in reader.search(query, **more).hits]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("fox", ["c-2", "c-1"]),
        ("FOX quick", ["c-2", "c-1"]),
        ('"brown fox"', ["c-1"]),
        ('"fox quick"', ["c-2"]),
        ('"fox quick', ["c-2"]),
        ('"quick fo"', []),
        ('"quick brown fo"*', ["c-1"]),
        ('"fox quick and fo"*', ["c-2"]),
        ("foxe*", ["c-2"]),
        ("fox*", ["c-2", "c-1"]),
        ("fox absent", []),
        ("cafe", ["c-3"]),
        ("CAFÉ", ["c-3"]),
        ('"cafe again"', ["c-3"]),
        ("strasse", []),
        ("straße", ["c-3"]),
        ("istanbul", ["c-3"]),
        ("foo_bar-baz", ["c-5"]),
        ("src/dbproxy/store", ["c-5"]),
        ("dbproxy/src", []),
        ("中文字", ["c-6"]),
        ("①②", ["c-6"]),
        ("never mind", ["c-7"]),
        ("halves", ["c-7"]),
        ("fox OR zebras", []),
        ("zebras NOT answer", []),
        ("role:assistant zebras 3", ["c-3"]),
        ("role:user zebras", []),
        ("project:/p/0 zebras", ["c-6", "c-4", "c-2"]),
        ("conversation:c-4 zebras", ["c-4"]),
        ("kind:main thread:main zebras 1", ["c-1"]),
        ("kind:title zebras", []),
        ('project:"/p/0" marzipan', ["c-4"]),
        ("text:fox", []),
        ("", []),
        ('" * ( ) - : ^ AND', ["c-6", "c-4", "c-2"]),
        ("* ( ) - : ^ {}", []),
        ("role:user", []),
    ],
)
def test_queries(path: Path, query: str, expected: list[str]) -> None:
    assert found(path, query) == expected


def test_pages_join_and_say_where_they_end(path: Path) -> None:
    with Reader.open(path) as reader:
        whole = reader.search("zebras")
        assert whole.complete
        assert whole.cursor == ""
        assert len(whole.hits) == 7
        pages, before = [], None
        for _ in range(9):
            page = reader.search("zebras", limit=2, before=before)
            pages += page.hits
            before = page.cursor
            if page.complete:
                break
        assert tuple(pages) == whole.hits
        assert reader.search("zebras", before=whole.hits[2].cursor).hits == whole.hits[3:]
        with pytest.raises(UnknownId, match="no place in a search"):
            reader.search("zebras", before="x")


def test_a_search_ends_after_its_time(path: Path) -> None:
    with Reader.open(path) as reader:
        page = reader.search("zebras", seconds=-1.0)
        assert not page.complete
        assert len(page.hits) <= 1


def test_filters_given_apart(path: Path) -> None:
    assert found(path, "zebras", project="/p/1", role="assistant") == ["c-7", "c-5", "c-3", "c-1"]
    assert found(path, "zebras", conversation="c-2") == ["c-2"]


def test_secrets_are_neither_found_nor_shown(path: Path) -> None:
    assert found(path, "Zq7" * 30) == []
    assert found(path, SECRET) == []
    with Reader.open(path) as reader:
        (hit,) = reader.search("marzipan").hits
    assert "marzipan" in hit.snippet
    assert "Zq7" not in hit.snippet
    assert [hit.snippet[start:end] for start, end in hit.marks] == ["marzipan"]
    # Cut anywhere, the secret stays hidden.
    for space in range(0, 200, 7):
        line, _ = snippet(understand("word"), "word " + "x" * space + " " + SECRET + " more" * 20)
        assert "Zq7Zq7" not in line, space


def test_hits_know_where_they_were_seen(tmp_path: Path) -> None:
    made = captured.fill(tmp_path / "db.sqlite")
    with Reader.open(made.path) as reader:
        (hit,) = reader.search("giraffes instead").hits
        assert (hit.exchange, hit.conversation, hit.role) == (made["rewind"], captured.CONVERSATION, "user")
        (hit,) = reader.search('"no giraffes"').hits
        assert hit.role == "assistant"
        # What an answer said is found once, though the next request carries it again.
        assert len(reader.search('"two zebras"').hits) == 1


def test_snippets_show_the_first_match() -> None:
    line, marks = snippet(understand("needle"), "hay " * 500 + "a Needle here" + " hay" * 500)
    assert line.startswith("… ")
    assert line.endswith(" …")
    assert [line[start:end] for start, end in marks] == ["Needle"]
    assert len(line) < 260
    line, marks = snippet(understand('"two words" wor*'), "two\n\twords, worlds")
    assert line == "two words, worlds"
    assert [line[start:end] for start, end in marks] == ["two words", "worlds"]
    assert snippet(understand("absent"), "nothing here") == ("nothing here", ())


def test_an_index_that_is_ahead_of_its_content_shows_no_wrong_hit(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    with storekit.store_at(path) as store:
        store.append(storekit.opened(1, storekit.talk("one apple")))
        store.append(storekit.opened(2, storekit.talk("one pear")))
        assert store.flush(10)
    with storekit.look(path) as connection:
        (apple,) = connection.execute("SELECT blob FROM found_in WHERE exchange = ?", [storekit.make_id(1)]).fetchone()
        connection.execute("INSERT INTO search(rowid, text) VALUES (?, 'walnut')", [apple])
        connection.execute("INSERT INTO search(rowid, text) VALUES (99999, 'walnut')")
        connection.execute("INSERT INTO found_in VALUES (99999, 'gone', 'user')")
    assert found(path, "walnut") == []
    assert len(found(path, "one")) == 2


# ---- the query language


def test_how_a_query_is_understood() -> None:
    assert understand('role:user "a b" c*') == Query((Term(("a", "b")), Term(("c",), True)), (("role", "user"),))
    assert understand('a-b "c"*').match == '"a" "b" "c"*'
    assert understand("x:y").terms == (Term(("x", "y")),)
    assert understand("role: user").filters == ()
    assert len(understand("w " * 5000).terms) == 32
    assert tokens(["Ab\u0301c_d", "", "\ud800"]) == [["abc", "d"], [], []]


HOSTILE = st.one_of(st.text(max_size=60), st.text("\"*:-^(){}+ aAND'\\\0", max_size=30))


@settings(max_examples=150)
@given(HOSTILE)
@example('"')
@example('a"b*"c:"')
@example("NEAR(a b)")
@example("\ud800\udfff")
@example("ｆｏｏ ﬁ ⅷ ٣ a\u0301\u0302")
def test_no_text_is_a_wrong_query(path: Path, text: str) -> None:
    query = understand(text)
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE VIRTUAL TABLE s USING fts5(text, content='', detail=none, tokenize='unicode61')")
        if query.terms:
            connection.execute("SELECT rowid FROM s WHERE s MATCH ?", [query.match]).fetchall()
    connection.close()
    with Reader.open(path) as reader:
        reader.search(text)


@settings(max_examples=100)
@given(st.text(min_size=1, max_size=40))
def test_a_texts_own_words_find_it(text: str) -> None:
    query = understand(" ".join(tokens([text])[0]))
    line, marks = snippet(query, text)
    assert all(0 <= start < end <= len(line) for start, end in marks)
    assert len(fold(text)) == len(text)


WORDS = st.lists(st.sampled_from(["ab", "Cd", "é", "e\u0301", "x1", "n"]), min_size=2, max_size=5)
BETWEEN = st.sampled_from(
    [" ", "\n", "\t ", "_", "-", '"', "\\", "\x1b[", "—", "\\n", "", "/", "\u0301", "\x7f", '", "']
)


@settings(max_examples=300)
@given(WORDS, st.lists(BETWEEN, min_size=5, max_size=5), st.booleans(), st.integers(0, 4), st.integers(1, 4))
def test_the_quick_look_never_misses(words: list[str], between: list[str], escaped: bool, cut: int, size: int) -> None:
    """Whatever stands between words, however JSON writes it, also where a block ends between two."""
    text = "".join(word + gap for word, gap in zip(words, between, strict=False))
    blocks = [{"type": "text", "text": part} for part in (text[:cut], text[cut:]) if part]
    if cut == 1:
        blocks += [{"type": "tool_use", "id": "t", "name": "n", "input": {words[0]: words[1], "more": text}}]
    message = json.dumps({"role": "user", "content": blocks}, ensure_ascii=escaped).encode()
    phrase = understand('"' + " ".join(words[:size]).replace('"', "") + '"')
    if holds(phrase, search_text(message)[1]):
        assert might_hold(phrase, message)


def test_the_quick_look_says_no() -> None:
    text = "one two three — four\x1b five\nsix"
    message = json.dumps({"role": "user", "content": text}, ensure_ascii=False).encode()
    assert might_hold(understand('"five six"'), message)
    assert might_hold(understand('"two three"'), message)
    assert might_hold(understand('"four five"'), message)
    assert not might_hold(understand('"one three"'), message)
    assert might_hold(understand("one three"), message)
