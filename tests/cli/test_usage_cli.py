"""``dbproxy usage``: run as people run it, over a file that holds what a few sessions used."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time

import pytest
from usage_file import ACCOUNT, UsageFile

NOW = time.time()
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def file(tmp_path):
    global NOW  # of this test: the whole run takes long
    NOW = time.time()
    made = UsageFile(tmp_path / "data" / "dbproxy.sqlite")
    made.conversation("session-a", "Mend the parser")
    made.conversation("session-b", "")
    reset = NOW + 2 * HOUR
    made.limit(NOW - 2 * HOUR, "5h", 0.10, reset)
    made.limit(NOW - HOUR, "5h", 0.30, reset)
    made.limit(NOW - 60, "5h", 0.42, reset, status="allowed_warning")
    made.limit(NOW - 60, "7d", 0.18, NOW + 3 * DAY)
    made.limit(NOW - 60, "unified", None, reset)
    made.limit(NOW - 60, "requests", None, NOW + 60, quota=4000, remaining=3990)
    made.exchange(NOW - 90 * 60, cost_usd=0.75, input_tokens=1000, cache_read=90_000, output_tokens=500)
    made.exchange(NOW - 80 * 60, "session-b", cost_usd=0.25, cache_write_5m=100, cache_write_1h=2000, project="/src/b")
    made.exchange(NOW - 30 * 60, "session-b", cost_usd=1.0, output_tokens=100, project="/src/b/deep", thread="t1")
    made.exchange(NOW - 20 * 60, model="strange-model", input_tokens=7, output_tokens=7)
    made.exchange(NOW - 10 * 60, model="", model_asked="claude-opus-5-5", outcome="error", status=529)
    made.exchange(NOW - 3 * DAY, cost_usd=4.0, input_tokens=1_500_000, web_searches=3)
    made.exchange(NOW - 40 * DAY, cost_usd=100.0)
    made.add("agent", conversation="session-b", thread="t1", type="Explore", name="digger")
    yield made
    made.close()


@pytest.fixture
def usage(tmp_path):
    def run(*words, code=0):
        env = {"DBPROXY_DATA_DIR": str(tmp_path / "data"), "HOME": str(tmp_path), "PATH": "", "TZ": "UTC"}
        done = subprocess.run(
            [sys.executable, "-m", "dbproxy", "usage", *words], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def as_json(usage, *words):
    return json.loads(usage("--json", *words))


@pytest.mark.usefixtures("file")
def test_the_windows_are_those_that_the_api_stated(usage) -> None:
    text = usage()
    assert "Limits, as the API last stated them" in text
    (five,) = [line for line in text.splitlines() if line.strip().startswith("5h")]
    assert "42%" in five
    assert "allowed warning" in five
    assert "(in 1 h 59 min)" in five
    (week,) = [line for line in text.splitlines() if line.strip().startswith("7d")]
    assert "18%" in week
    assert "(in 2 d 23 h)" in week
    assert "10 of 4,000" in text
    found = {window["window"]: window for window in as_json(usage)["windows"]}
    assert found["5h"]["utilization"] == 0.42
    assert found["5h"]["resets"] == pytest.approx(NOW + 2 * HOUR)
    assert found["5h"]["began"] == pytest.approx(NOW - 3 * HOUR)
    assert found["5h"]["over"] is False


def test_a_window_that_is_over_is_not_carried_on(file, usage) -> None:
    file.limit(NOW - 1, "5h", 0.99, NOW - 0.5, status="rejected")
    (five,) = [line for line in usage().splitlines() if line.strip().startswith("5h")]
    assert "began anew; its use was not stated yet" in five
    assert "99" not in five.partition("stated")[0]
    assert next(w for w in as_json(usage)["windows"] if w["window"] == "5h")["utilization"] is None


@pytest.mark.usefixtures("file")
def test_sums_are_called_sums(usage) -> None:
    text = usage()
    assert "Sums of what went through this proxy" in text
    found = {row["name"]: row for row in as_json(usage)["rolling"]}
    assert (found["last 5 hours"]["exchanges"], found["last 5 hours"]["cost_usd"]) == (5, 2.0)
    assert (found["last 7 days"]["exchanges"], found["last 7 days"]["cost_usd"]) == (6, 6.0)
    assert found["last 5 hours"]["prompt_tokens"] == 1000 + 90_000 + 100 + 2000 + 7
    assert found["last 5 hours"]["errors"] == 1


@pytest.mark.usefixtures("file")
def test_by_day_is_usual_and_goes_back_thirty_days(usage) -> None:
    found = as_json(usage)
    assert found["by"] == ["day"]
    days = [row["day"] for row in found["rows"]]
    assert days == sorted(days)
    assert found["total"]["cost_usd"] == 6.0
    assert found["total"]["unpriced"] == 1
    everything = as_json(usage, "--since", "100d")
    assert everything["total"]["cost_usd"] == 106.0
    text = usage()
    assert "$6.0000+" in text
    assert "no price is known for 1 of the requests" in text


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("by", "cost"),
    [
        ("model", {"claude-opus-5-5": 6.0, "strange-model": None}),
        ("session", {"session-a": 4.75, "session-b": 1.25}),
        ("conversation", {"session-a": 4.75, "session-b": 1.25}),
        ("account", {ACCOUNT: 6.0}),
        ("project", {"": 4.75, "/src/b": 0.25, "/src/b/deep": 1.0}),
        ("agent", {"main": 5.0, "digger": 1.0}),
        ("kind", {"main": 6.0}),
    ],
)
def test_groupings(usage, by, cost) -> None:
    assert {row[by]: row["cost_usd"] for row in as_json(usage, "--by", by)["rows"]} == cost


@pytest.mark.usefixtures("file")
def test_branches_and_hours_and_several_groupings(usage) -> None:
    branches = [row["branch"] for row in as_json(usage, "--by", "branch")["rows"]]
    assert sorted(branches) == ["session-a main/1", "session-b main/1", "session-b t1/1"]
    assert all("T" in row["hour"] for row in as_json(usage, "--by", "hour")["rows"])
    both = as_json(usage, "--by", "session,model")["rows"]
    assert len(both) == 3
    assert {"session", "model"} <= set(both[0])
    assert "strange-model" in usage("--by", "session,model")


@pytest.mark.usefixtures("file")
def test_filters(usage) -> None:
    assert as_json(usage, "--session", "session-b")["total"]["exchanges"] == 2
    assert as_json(usage, "--project", "/src/b")["total"]["exchanges"] == 2
    assert as_json(usage, "--project", "/src/b/deep")["total"]["exchanges"] == 1
    assert as_json(usage, "--model", "strange")["total"]["exchanges"] == 1
    assert as_json(usage, "--account", "nobody")["rows"] == []
    assert as_json(usage, "--since", "1h")["total"]["exchanges"] == 3
    assert as_json(usage, "--since", "7d", "--until", "2h")["total"]["exchanges"] == 1
    assert as_json(usage, "--kind", "title")["rows"] == []
    assert "nothing was captured in this time" in usage("--kind", "title")


@pytest.mark.usefixtures("file")
def test_who_used_the_window_is_an_estimate(usage) -> None:
    """Between 0.10 and 0.30: three quarters session-a's, one of session-b; up to 0.42: session-b's alone."""
    five = next(share for share in as_json(usage, "--by", "session")["shares"] if share["window"] == "5h")
    assert five["estimate"] is True
    assert {item["session"]: item["utilization"] for item in five["sessions"]} == {
        "session-a": pytest.approx(0.15),
        "session-b": pytest.approx(0.05 + 0.12),
    }
    assert five["before"] == pytest.approx(0.10)
    text = usage("--by", "session")
    assert "Estimated share of the 5h window" in text
    assert "~15.0%" in text
    assert "Mend the parser" in text
    assert as_json(usage)["shares"] == []


@pytest.mark.usefixtures("file")
def test_csv(usage) -> None:
    rows = list(csv.DictReader(io.StringIO(usage("--by", "session", "--csv"))))
    assert [row["session"] for row in rows] == ["session-a", "session-b"]
    assert rows[0]["title"] == "Mend the parser"
    assert float(rows[0]["cost_usd"]) == 4.75
    assert rows[0]["unpriced"] == "1"


def test_a_title_is_no_formula_and_no_escape(file, usage) -> None:
    file.conversation("session-b", "=cmd()\x1b[2J")
    assert "'=cmd()" in usage("--by", "session", "--csv")
    assert "\x1b" not in usage("--by", "session")


def test_without_a_file_it_says_what_to_do(usage) -> None:
    assert "nothing was captured yet" in usage(code=1)


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--by", "moon"], "'moon' is none of session"),
        (["--by", ","], "none of session"),
        (["--since", "soon"], "soon"),
        (["--json", "--csv"], "not allowed with"),
    ],
)
def test_bad_words(usage, words, complaint) -> None:
    assert complaint in usage(*words, code=2)


@pytest.mark.usefixtures("file")
def test_an_unknown_session(usage) -> None:
    assert "nowhere" in usage("--session", "nowhere", code=1)
