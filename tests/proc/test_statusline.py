"""The status line: the script under a real shell, and edits of settings that change nothing else."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.errors import ConfigError
from dbproxy.proc import statusline

SCRIPT = Path("/data dir/it's/statusline.sh")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def line(tmp_path):
    """Runs the script as the client does: its JSON on standard input."""
    run = tmp_path / "a 'run' folder"
    (run / "status").mkdir(parents=True)
    script = tmp_path / "statusline.sh"
    script.write_text(statusline.script(run))
    script.chmod(0o700)

    def show(stdin, status=None, *, pid=None, before=None, delete=False):
        (run / "daemon.json").write_text(json.dumps({"pid": pid or os.getpid(), "pid_identity": "7"}, indent=1))
        if status is not None:
            (run / "status" / "abc-1").write_text(status)
        command = statusline.command_for(script, before)
        if delete:
            script.unlink()
        done = subprocess.run(command, shell=True, input=stdin, capture_output=True, text=True, timeout=20)
        assert done.stderr == "" or delete
        return done.stdout

    return show


SEEN = '{"hook_event_name": "Status", "session_id":"abc-1", "model": {"id": "m"}}'


def test_c22_nothing_is_shown_for_a_session_that_was_not_seen(line):
    """C22: prints only for a session that goes through us."""
    assert line(SEEN) == ""
    assert line('{"session_id": "other"}', "ON IDLE\n") == ""
    assert line("", "ON IDLE\n") == ""
    assert line("not json", "ON IDLE\n") == ""


def test_a_proxy_that_tunnels_blindly_after_crashes_says_so(line, tmp_path):
    (tmp_path / "a 'run' folder" / "degraded").write_text("5 crashes\n")
    assert line(SEEN, "ON IDLE 0\n") == "\x1b[1;38;5;48m◈ dbproxy DEGRADED\x1b[0m\n"
    assert line('{"session_id": "other"}', "ON IDLE\n") == ""


def test_on_is_shown_for_a_session_that_was_seen(line):
    assert line(SEEN, "ON IDLE 0\n") == "\x1b[1;38;5;48m◈ dbproxy ON\x1b[0m\n"
    assert line('{\n "session_id" : "abc-1"\n}', "ON IDLE") == "\x1b[1;38;5;48m◈ dbproxy ON\x1b[0m\n"


def test_phase_and_size_are_shown(line):
    assert "ON WAL_ACTIVE 123k" in line(SEEN, "ON WAL_ACTIVE 123456\n")
    assert "ON RELAY\x1b" in line(SEEN, "ON RELAY\n")


def test_a_dead_proxy_is_not_on(line):
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert line(SEEN, "ON IDLE 0\n", pid=ended.pid) == ""


@pytest.mark.parametrize("status", ["", "OFF\n", "ONE IDLE 0\n", "$(touch x) 9\n", "\n", "on\n"])
def test_another_status_than_on_shows_nothing(line, status):
    assert line(SEEN, status) == ""


@pytest.mark.parametrize("status", ["ON \x1b[2J 5\n", "ON $(touch x) 9\n", "ON IDLE `id`\n", "ON - -\n"])
def test_a_strange_status_shows_no_strange_text(line, status):
    assert line(SEEN, status) == "\x1b[1;38;5;48m◈ dbproxy ON\x1b[0m\n"


@pytest.mark.parametrize("session", ["../../daemon.json", "a/b", "$(id)", "`id`"])
def test_a_session_id_is_never_a_path_or_a_command(line, session):
    assert line(json.dumps({"session_id": session}), "ON IDLE\n") == ""


def test_an_earlier_status_line_keeps_running_with_the_same_input(line):
    before = """sed -n 's/.*"id": "\\([a-z]*\\)".*/model \\1/p'"""
    assert line(SEEN, before=before) == "model m\n"
    assert line(SEEN, "ON IDLE\n", before=before) == "model m | \x1b[1;38;5;48m◈ dbproxy ON\x1b[0m\n"


def test_an_earlier_status_line_survives_the_loss_of_our_script(line):
    assert line(SEEN, "ON IDLE\n", before="cat >/dev/null; echo mine", delete=True) == "mine\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "{ }\n",
        '{"a": 1}',
        '{\n  "a": 1\n}\n',
        '{\r\n\t"a": {"statusLine": 2},\r\n\t"b": [1, 2]\r\n}\r\n',
        '\ufeff{"env": {"X": "y"}}',
        '{"statusLine": {"type": "command", "command": "echo \'hi\' \\"there\\"", "padding": 0}, "z": 1}',
        '{\n    "statusLine": {\n        "command": "x",\n        "type": "command"\n    }\n}',
        '{"statusLine": {"type": "command", "command": ""}}',
    ],
)
def test_installing_changes_one_value_and_removing_restores_it(text):
    once = statusline.installed(text, SCRIPT)
    assert statusline.is_installed(once, SCRIPT)
    assert statusline.installed(once, SCRIPT) == once
    back = statusline.removed(once, SCRIPT)
    if "statusLine" in text and '"a"' not in text:
        assert back == text
    assert json.loads(back.removeprefix("\ufeff") or "{}") == json.loads(text.removeprefix("\ufeff") or "{}")
    assert statusline.removed(back, SCRIPT) == back
    before = json.loads(text.removeprefix("\ufeff") or "{}")
    after = json.loads(once.removeprefix("\ufeff"))
    assert {**after, "statusLine": None} == {**before, "statusLine": None}


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.none() | st.integers(0, 4))
def test_any_settings_survive(settings, indent):
    settings.pop("statusLine", None)
    text = json.dumps(settings, indent=indent)
    once = statusline.installed(text, SCRIPT)
    assert json.loads(once).keys() - {"statusLine"} == settings.keys()
    assert json.loads(statusline.removed(once, SCRIPT)) == settings


@given(st.text(min_size=1))
def test_any_earlier_command_is_given_back(command):
    text = json.dumps({"statusLine": {"type": "command", "command": command}})
    assert json.loads(statusline.removed(statusline.installed(text, SCRIPT), SCRIPT)) == json.loads(text)


@pytest.mark.parametrize("text", ["{", "[]", "1", '{"a": }', '{"a": 1,}', "{} {}", "[" * 100_000])
def test_broken_settings_are_left_alone(text):
    with pytest.raises(ConfigError, match="nothing was changed"):
        statusline.installed(text, SCRIPT)
    with pytest.raises(ConfigError):
        statusline.removed(text, SCRIPT)


@pytest.mark.parametrize("value", ['"x"', "null", '{"type": "other"}', '{"type": "command"}', "[]"])
def test_a_status_line_of_another_kind_is_left_alone(value):
    text = f'{{"statusLine": {value}}}'
    with pytest.raises(ConfigError, match="cannot stand beside"):
        statusline.installed(text, SCRIPT)
    assert statusline.removed(text, SCRIPT) == text


def test_somebody_elses_status_line_is_not_removed():
    text = '{"statusLine": {"type": "command", "command": "dbproxy_beside"}}'
    assert not statusline.is_installed(text, SCRIPT)
    assert statusline.removed(text, SCRIPT) == text


def test_a_file_is_replaced_whole_with_its_mode_and_through_links(tmp_path):
    real, link = tmp_path / "dotfiles.json", tmp_path / "settings.json"
    real.write_text("{}")
    real.chmod(0o640)
    link.symlink_to(real)
    statusline.replace_text(link, '{"ä": "\r\n"}')
    assert link.is_symlink()
    assert real.read_bytes() == '{"ä": "\r\n"}'.encode()
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dotfiles.json", "settings.json"]


def shown(line, status):
    text = line(SEEN, status)
    assert text.startswith("\x1b[1;38;5;48m◈ dbproxy ON")
    return text.removeprefix("\x1b[1;38;5;48m◈ dbproxy ON").removesuffix("\x1b[0m\n")


FUTURE = 4102444800  # 2100-01-01 00:00 UTC, a Friday


def test_context_windows_and_cost_are_shown(line):
    status = f"ON IDLE 123456\nwindow 200000\ncost 12.345678\n5h 42 {FUTURE} allowed\n7d 18 {FUTURE + 3600} allowed\n"
    assert shown(line, status) == " 123k (61%) · 5h 42% until 00:00 · 7d 18% until Fri 01:00 · $12.34"


def test_what_is_not_known_is_left_out(line):
    assert shown(line, "ON IDLE 0\ncost 0.000001\n") == " · $0.00"
    assert shown(line, f"ON WAL 5000\n7d 3 {FUTURE}\nnewer 1 2 3\n") == " WAL 5k · 7d 3% until Fri 00:00"
    assert shown(line, "ON IDLE 5000\nwindow 0\n5h 7 0 allowed\n") == " 5k · 5h 7%"


def test_a_warning_and_an_unpriced_part_are_marked(line):
    status = f"ON IDLE 0\n5h 91 {FUTURE} allowed_warning\n7d 100 {FUTURE} rejected\ncost 3.500000 +\n"
    assert shown(line, status) == " · 5h 91%! until 00:00 · 7d 100%! until Fri 00:00 · $3.50+"


def test_a_window_whose_end_is_past_says_nothing_about_the_next(line):
    assert shown(line, f"ON IDLE 0\n5h 91 1784560000 allowed\n7d 20 {FUTURE}\n") == " · 7d 20% until Fri 00:00"


@pytest.mark.parametrize(
    "words",
    [
        "window $(id)",
        "window -5",
        "window 08",
        "cost 1.2.3",
        "cost 1",
        "cost .50",
        "cost $(id)",
        "cost 1e400000.00",
        "5h 9x 1 allowed",
        "5h * * *",
        "5h \x1b[2J",
        "7d",
        "7d 99999999999999999999 1 x",
        "%s %n",
    ],
)
def test_odd_figures_are_left_out(line, words, tmp_path):
    assert shown(line, f"ON IDLE 5000\n{words}\n") == " 5k"


def test_an_earlier_script_reads_the_first_line_alone(line):
    """A script that was installed before the figures came takes the first three words of the file."""
    old = 'read -r on phase tokens <"$0"; printf "%s|%s|%s" "$on" "$phase" "$tokens"'
    path = Path(os.environ["HOME"]) / "status"
    path.write_text("ON IDLE 123456\nwindow 200000\ncost 1.000000\n")
    done = subprocess.run(["sh", "-c", old, str(path)], capture_output=True, text=True, timeout=20)
    assert done.stdout == "ON|IDLE|123456"
