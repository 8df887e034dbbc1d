"""``dbproxy conversations``: the list, the tree in its true shape, forgetting; how tables fit a terminal."""

from __future__ import annotations

import json

import captured
import pytest
from captured import CONVERSATION, OTHER

from dbproxy.cli.conversations import draw
from dbproxy.cli.tables import Cell, Column, Terminal, cells_of, clean, count, duration, money, shorten, stamp, table
from dbproxy.paths import make_private
from dbproxy.store.reader import Reader


@pytest.fixture
def made(shell):
    return captured.fill(make_private(shell.data) / "dbproxy.sqlite")


def good(done):
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def error(done, code=1):
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


# -- list -------------------------------------------------------------------------------------------------------------


def test_the_latest_conversations(shell, made):
    lines = good(shell.run("conversations", "list")).splitlines()
    assert [line.split()[0] for line in lines] == ["ID", OTHER[:8], CONVERSATION[:8]]
    assert "Zebras" in lines[2]
    assert "$0.1125+" in lines[2]  # one request has no known price
    rows = json.loads(good(shell.run("conversations", "list", "--json", "--project", "/home/user/shop")))
    assert [row["id"] for row in rows] == [CONVERSATION]
    assert good(shell.run("conversations", "list", "--since", "1h")) == "no such conversation\n"


# -- show -------------------------------------------------------------------------------------------------------------


def test_the_tree_shows_agents_branches_and_costs(shell, made):
    lines = good(shell.run("conversations", "show", "0f3a")).splitlines()
    tree = lines[lines.index("") + 1 :]
    shape = [line.partition("  $")[0].split("  ")[0] if line[0] in "ma" else line.rstrip() for line in tree]
    assert shape[0] == "main"
    one = "1.1k in, 20.0k cached, 50 out, $0.0125"
    assert tree[1:] == [
        "├─ branch 1  3 turns, 4.4k in, 80.0k cached, 200 out, $0.0375+",
        f"│  ├─ agent 1: zebra-scout (custom)  1 turn, {one}",
        f"│  │  └─ agent 3: general-purpose  1 turn, {one}",
        f"│  ├─ agent 2: Explore  1 turn, {one}",
        f"│  ├─ {made['failed']} {stamp(captured.BEGAN + 7)} main, error: overloaded_error",
        f"│  ├─ {made['retried']} {stamp(captured.BEGAN + 8)} main, attempt 2  {one}",
        "│  └─ compaction (auto)  1.1k in, 20.0k cached, 50 out",
        f"├─ branch 2: after the compaction {made['compaction']}  1 turn, {one}",
        f"└─ branch 3: a rewind, leaves at {made['first']}  1 turn, {one}",
        f"aside: 1 title  {one}",
    ]


def test_every_request_of_it_on_demand(shell, made):
    out = good(shell.run("conversations", "show", "0f3a", "--exchanges"))
    for name, id in made.ids.items():
        assert (f" {id} " in out) == (name != "other"), name


def test_the_tree_as_json(shell, made):
    tree = json.loads(good(shell.run("conversations", "show", "last", "--json")))
    assert tree["conversation"]["id"] == OTHER
    assert tree["main"]["branches"][0]["exchanges"][0]["id"] == made["other"]


@pytest.mark.parametrize("width", [40, 60, 200])
def test_the_tree_fits_the_terminal(shell, made, width):
    with Reader.open(made.path) as reader:
        tree = reader.conversation("0f3a")
    plain = draw(tree, Terminal(width), exchanges=True)
    assert max(map(cells_of, plain[1:])) <= width  # the id stays whole
    painted = draw(tree, Terminal(width, colour=True), exchanges=True)
    assert len(painted) == len(plain)
    assert "\x1b[36m" in "".join(painted)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show"], 2, "ID"),
        (["show", "nobody"], 1, "conversations list"),
        (["show", "0f3"], 1, "Give more"),
        (["list", "-n", "-1"], 2, "from 1 to"),
        ([], 2, "ACTION"),
    ],
)
def test_bad_input(shell, made, words, code, said):
    done = shell.run("conversations", *words)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_file(shell):
    assert "nothing was captured yet" in error(shell.run("conversations", "list"))
    assert "nothing was captured yet" in error(shell.run("conversations", "show", "last"))


# -- reset ------------------------------------------------------------------------------------------------------------


def test_without_a_proxy_there_is_nothing_to_forget(shell, made):
    assert "no proxy runs" in good(shell.run("conversations", "reset"))
    assert json.loads(good(shell.run("conversations", "reset", "--json"))) == {"status": "not_running", "count": 0}


def test_the_running_proxy_forgets(shell):
    good(shell.run("start"))
    assert good(shell.run("conversations", "reset")).startswith("forgotten: all 0")
    assert json.loads(good(shell.run("conversations", "reset", "--json"))) == {"status": "reset_all", "count": 0}
    message = error(shell.run("conversations", "reset", "nobody"))
    assert message == "dbproxy: no conversation begins with 'nobody'"
    (shell.data / "run" / "control-token").write_text("wrong\n")
    assert "control token" in error(shell.run("conversations", "reset"))


# -- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_narrows_what_may_be_narrowed():
    columns = (Column("ID"), Column("TITLE", least=6), Column("N", right=True), Column("EMPTY"))
    rows = [["abc", "a long title of a thing", "7", ""], [Cell("d", "red"), "短い題名" * 6, "12345", ""]]
    whole = table(columns, rows, Terminal())
    assert whole[0] == "ID   TITLE" + " " * 49 + "N"
    assert whole[1].endswith("    7")
    narrow = table(columns, rows, Terminal(30))
    assert all(cells_of(line) <= 30 for line in narrow)
    assert "a long title of a…" in narrow[1]
    assert "\x1b" not in "".join(narrow)
    assert "\x1b[31md\x1b[0m" in table(columns, rows, Terminal(30, colour=True))[2]
    assert table(columns, rows, Terminal(5))  # nothing more to narrow: too wide, but all there


def test_what_reaches_a_terminal():
    assert clean("a\x1b[2Jb\x07\nc\u202e\u200b") == "a\ufffd[2Jb\ufffd c\ufffd\ufffd"
    assert shorten("zebra", 5) == "zebra"
    assert shorten("zebras", 5) == "zebr…"
    assert shorten("斑馬斑馬", 5) == "斑馬…"
    assert not Terminal.of_stdout({"TERM": "xterm"}).colour  # stdout of a test is no terminal


def test_short_figures():
    assert [count(n) for n in (0, 950, 1000, 12_345, 123_456, 1_234_567)] == [
        "",
        "950",
        "1.0k",
        "12.3k",
        "123k",
        "1.2M",
    ]
    assert [money(n) for n in (None, 0.0, 0.01234, 12.345)] == ["", "$0.0000", "$0.0123", "$12.35"]
    assert [duration(n) for n in (None, -1.0, 12.3, 3456.0, 130_000.0)] == ["", "", "12ms", "3.5s", "2m10s"]
    assert stamp(None) == ""
    assert len(stamp(1_760_000_000, 1_760_000_001)) == 8
    assert stamp(1_760_000_000, 1_780_000_000).startswith("2025-10-09 ")
