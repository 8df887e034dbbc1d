"""``dbproxy log``: lists, one exchange, search, exports, the proof of exact bodies; bad input and broken pipes."""

from __future__ import annotations

import json
import sqlite3
import stat
import subprocess
import sys

import captured
import pytest
from captured import CONVERSATION

from dbproxy.app.asking import parse_age, parse_size, parse_when
from dbproxy.app.transcript import markdown
from dbproxy.paths import make_private


@pytest.fixture
def made(shell):
    return captured.fill(make_private(shell.data) / "dbproxy.sqlite")


def good(done):
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def error(done, code=1):
    assert done.returncode == code
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    if code == 1:
        assert len(lines) == 1
    assert "Traceback" not in done.stderr
    return lines[-1]


# -- list and show ----------------------------------------------------------------------------------------------------


def test_the_list_shows_the_newest_first(shell, made):
    lines = good(shell.run("log", "list")).splitlines()
    assert lines[0].split()[:4] == ["ID", "TIME", "CONV", "KIND"]
    assert [line.split()[0] for line in lines[1:]] == sorted(made.ids.values(), reverse=True)
    failed = next(line for line in lines if made["failed"] in line)
    assert failed.endswith("error 529")
    assert "\x1b" not in "".join(lines)


def test_the_list_can_be_narrowed(shell, made):
    def ids(*words):
        return [row["id"] for row in json.loads(good(shell.run("log", "list", "--json", *words)))]

    assert ids("-n", "2") == [made["other"], made["rewind"]]
    assert ids("--kind", "title") == [made["title"]]
    assert ids("--outcome", "error") == [made["failed"]]
    assert ids("--model", "unknown") == [made["compaction"]]
    assert ids("--conversation", "0f3b") == [made["other"]]
    assert ids("--conversation", "last", "--kind", "main") == [made["other"]]
    assert ids("--since", "2h") == []
    assert good(shell.run("log", "list", "--since", "2h")) == "no such exchange was captured\n"


def test_one_exchange_is_shown_with_its_last_message_and_the_answer(shell, made):
    out = good(shell.run("log", "show", made["second"]))
    assert out.startswith(f"{made['second']} is a turn of the main conversation in conversation {CONVERSATION}")
    assert "/home/user/shop" in out
    assert "Ask two helpers about them" in out
    assert "Asking." in out
    assert "list the zebras" not in out
    assert "x-app" not in out
    assert "list the zebras" in good(shell.run("log", "show", made["second"], "--all"))
    assert "  x-app: cli" in good(shell.run("log", "show", made["second"], "--headers"))


def test_captured_text_cannot_act_on_the_terminal(shell, made):
    out = good(shell.run("log", "show", made["rewind"]))
    assert "giraffes" in out
    assert "\x1b" not in out
    assert "\x1b" not in good(shell.run("log", "search", "giraffes"))


def test_bodies_are_printed_as_they_were_sent(shell, made):
    assert good(shell.run("log", "show", made["rewind"], "--request")) == made.bodies["rewind"].decode()
    assert json.loads(good(shell.run("log", "show", made["first"], "--response")))["role"] == "assistant"
    assert good(shell.run("log", "show", made["first"], "--stream")) == "event: ping\ndata: {}\n\n"
    assert "--capture-stream" in error(shell.run("log", "show", made["second"], "--stream"))
    facts = json.loads(good(shell.run("log", "show", "last", "--json")))
    assert facts["exchange"]["id"] == made["other"]


# -- search, export, verify -------------------------------------------------------------------------------------------


def test_search(shell, made):
    out = good(shell.run("log", "search", "giraffes"))
    assert made["rewind"] in out
    assert "list the giraffes" in out
    hits = json.loads(good(shell.run("log", "search", "two", "zebras", "--json")))["hits"]
    assert hits
    assert good(shell.run("log", "search", '"zebras two"')) == "nothing found\n"
    assert good(shell.run("log", "search", "zebras", "--project", "/home/user/farm")) == "nothing found\n"
    assert "there is more" in good(shell.run("log", "search", "zebras", "-n", "1"))
    assert "no word" in error(shell.run("log", "search", '"*"'), 2)


def test_export_as_lines(shell, made):
    lines = [json.loads(line) for line in good(shell.run("log", "export", "--conversation", "0f3a")).splitlines()]
    assert len(lines) == 11
    assert [line["exchange"]["id"] for line in lines] == sorted(line["exchange"]["id"] for line in lines)
    first = lines[0]
    assert first["request"] == json.loads(made.bodies["first"])
    assert first["response"]["content"][0]["text"] == "There are two zebras."
    one = good(shell.run("log", "export", made["first"]))
    assert made.bodies["first"].decode() in one  # the very bytes


def test_export_as_a_transcript(shell, made):
    out = good(shell.run("log", "export", made["retried"], "--format", "markdown"))
    assert out.startswith(f"# Conversation {CONVERSATION}: main\n")
    assert out.count("## user") == 3
    assert out.rstrip().endswith("They said two.")
    whole = good(shell.run("log", "export", "--conversation", "0f3a", "--format", "markdown"))
    titles = [line for line in whole.splitlines() if line.startswith("# ")]
    assert [title.partition(": ")[2] for title in titles] == [
        *["main"] * 3,
        "zebra-scout #1",
        "Explore #2",
        "general-purpose #3",
    ]
    assert "conversation" in error(shell.run("log", "export", "--format", "markdown"), 2)


def test_an_export_to_a_file_is_private_and_can_be_redacted(shell, made):
    secret = "sk-ant-api03-" + "Ab1" * 20
    path = shell.data / "dbproxy.sqlite"
    store = captured.Store.open(path, redact=lambda text: text)
    again = captured.Captured(path, number=20)
    captured.put(store, again, "secret", [captured.user(f"my key is {secret}")], "Hm.", edge=captured.Edge.ROOT)
    assert store.close(10)
    target = shell.home / "out.jsonl"
    done = shell.run("log", "export", again["secret"], "--redact", "-o", str(target))
    assert (done.returncode, done.stdout) == (0, "")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    line = json.loads(target.read_text())
    assert secret not in target.read_text()
    assert "[redacted]" in line["request"]["messages"][0]["content"]
    assert secret in good(shell.run("log", "export", again["secret"]))
    assert "cannot write" in error(shell.run("log", "export", again["secret"], "-o", str(shell.home / "no" / "x")))


def test_verify_proves_every_body(shell, made):
    out = good(shell.run("log", "verify"))
    assert out.startswith("12 request bodies rebuilt byte for byte")
    facts = json.loads(good(shell.run("log", "verify", "--json")))
    assert (facts["exact"], facts["wrong"], facts["differences"]) == (12, 0, [])


def test_verify_finds_what_is_wrong(shell, made):
    with sqlite3.connect(made.path) as connection:
        connection.execute("UPDATE exchange SET body_sha256 = zeroblob(32) WHERE id = ?", [made["second"]])
    connection.close()
    done = shell.run("log", "verify")
    assert done.returncode == 1
    assert f"WRONG {made['second']}" in done.stdout
    done = shell.run("log", "verify", "--json")
    assert done.returncode == 1
    assert [row["exchange"] for row in json.loads(done.stdout)["differences"]] == [made["second"]]


# -- bad input --------------------------------------------------------------------------------------------------------


def test_without_a_file(shell):
    for words in (["list"], ["show", "last"], ["search", "x"], ["verify"], ["export"], ["prune", "--older-than", "1d"]):
        assert "nothing was captured yet" in error(shell.run("log", *words))
    assert not (shell.data / "dbproxy.sqlite").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["log"], 2, "ACTION"),
        (["log", "show"], 2, "EXCHANGE"),
        (["log", "show", "zzz"], 1, "log list"),
        (["log", "show", "0199c82c"], 1, "Give more"),
        (["log", "show", ""], 1, "log list"),
        (["log", "list", "-n", "0"], 2, "from 1 to"),
        (["log", "list", "-n", "many"], 2, "from 1 to"),
        (["log", "list", "--since", "yesterday"], 2, "7d"),
        (["log", "list", "--conversation", "nobody"], 1, "conversations list"),
        (["log", "prune"], 2, "--older-than"),
        (["log", "prune", "--older-than", "soon"], 2, "30m"),
        (["log", "prune", "--max-size", "-1"], 2, "500MB"),
        (["log", "show", "last", "--request", "--all"], 2, "not allowed"),
        (["log", "export", "last", "--kind", "main"], 2, "together"),
        (["log", "export", "--format", "pdf"], 2, "jsonl"),
    ],
)
def test_bad_input_is_one_clear_line(shell, made, words, code, said):
    done = shell.run(*words)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_of_somebody_else(shell):
    (make_private(shell.data) / "dbproxy.sqlite").write_bytes(b"not a database at all" * 100)
    message = error(shell.run("log", "list"))
    assert "dbproxy.sqlite" in message


def test_a_reader_that_goes_away_is_no_failure(shell, made):
    code = "import sys; from dbproxy.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, "log", "export"],
        env=shell.environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


# -- what the options mean --------------------------------------------------------------------------------------------


def test_times_ages_and_sizes():
    now = 1_000_000.0
    assert parse_when("90s", now) == now - 90
    assert parse_when("1.5h", now) == now - 5400
    assert parse_when("1760000000", now) == 1_760_000_000
    assert parse_when("2026-01-31T12:00:00+00:00", now) == 1_769_860_800
    assert parse_age("4w") == 4 * 7 * 86_400
    assert [parse_size(text) for text in ("500MB", "1.5GiB", "10k", "12")] == [500_000_000, 1_610_612_736, 10_000, 12]
    for parse in (parse_age, parse_size, lambda text: parse_when(text, now)):
        for text in ("", "x", "-1d", "1y2", "\u0661d", "9" * 400 + "x"):
            with pytest.raises(ValueError, match="write"):
                parse(text)


LS = {"command": "ls"}


def test_a_transcript_of_any_message():
    messages = [
        {"role": "user", "content": "plain"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm\nhm"}, {"type": "redacted_thinking"}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "```\nfence\n```"}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": []}]},
        {"role": "user", "content": [{"type": "image", "source": {"media_type": "image/png", "data": "AAAA"}}]},
        {"role": "user", "content": None},
        {"role": 5, "content": [1, None, {"type": 7}, {"type": "tool_result", "content": [{"type": "image"}, "x"]}]},
        {"type": "error", "error": {"type": "overloaded_error"}},
        [],
    ]
    raw = [*(json.dumps(message).encode() for message in messages), b"\xff{", b"[" * 100_000]
    out = markdown("A\ntitle", [("a", "b")], raw)
    assert out.startswith("# A title\n\n- a: b\n")
    assert "> hm\n> hm" in out
    assert '**Bash** `t1`\n\n```json\n{\n  "command": "ls"\n}\n```' in out
    assert "````\n```\nfence\n```\n````" in out
    assert "**Result** (error) of `t1`" in out
    assert "*(image: image/png, 3 bytes)*" in out


# -- prune ------------------------------------------------------------------------------------------------------------


def test_prune_removes_texts_and_keeps_facts(shell, made):
    said = good(shell.run("log", "prune", "--older-than", "1d", "--dry-run"))
    assert said.startswith("would be removed: 12 ")
    assert good(shell.run("log", "show", made["first"], "--request")) == made.bodies["first"].decode()
    removed = json.loads(good(shell.run("log", "prune", "--older-than", "1d", "--json")))
    assert removed["exchanges"] == 12
    assert "(pruned)" in error(shell.run("log", "show", made["first"], "--request"))
    assert "removed by `log prune`" in good(shell.run("explain", made["first"]))
    assert "$0.1125+" in good(shell.run("conversations", "list"))
    assert good(shell.run("log", "search", "zebras")) == "nothing found\n"
    assert "12 exchanges without a body" in good(shell.run("log", "verify"))
    good(shell.run("log", "prune", "--max-size", "1kB", "--facts"))
    assert good(shell.run("log", "list")) == "no such exchange was captured\n"
