"""The command line itself: options before the word, help, exit codes, the generated page; and the small commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dbproxy import __version__
from dbproxy.cli import COMMANDS, main
from dbproxy.cli.help import page
from dbproxy.cli.options import CommandLine, UsageError, split, take_settings
from dbproxy.cli.seed import translate

ROOT = Path(__file__).resolve().parents[2]


def line(*words):
    parsed = CommandLine()
    split(words, parsed)
    return parsed


def test_the_first_word_is_the_command_and_the_rest_is_untouched():
    rest = ["--listen", "x", "-h", "--debug", "--", "", "--version"]
    parsed = line("--log-level", "debug", "--passthrough", "--debug", "claude", *rest)
    assert parsed.command == "claude"
    assert parsed.rest == rest
    assert parsed.overrides == {"log_level": "debug", "passthrough": "true"}
    assert (parsed.debug, parsed.help, parsed.version) == (True, False, False)


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["--listen=a:1", "--listen", "b:2"], {"listen": "a:1,b:2"}),
        (["--log-level=info", "--log-level", "debug"], {"log_level": "debug"}),
        (["--passthrough=no"], {"passthrough": "no"}),
        (["--no-passthrough"], {"passthrough": "false"}),
        (["--upstream-url="], {"upstream_url": ""}),
        (["--plugins-disabled", "x"], {"plugins_disabled": "x"}),
    ],
)
def test_settings_as_options(words, overrides):
    assert line(*words, "status").overrides == overrides
    parsed = CommandLine()
    assert take_settings([*words, "-n", "5", "--json"], parsed) == ["-n", "5", "--json"]
    assert parsed.overrides == overrides


@pytest.mark.parametrize("words", [["-x"], ["--listen"], ["--no-listen", "claude"], ["--"]])
def test_wrong_options_are_wrong_usage(words):
    with pytest.raises(UsageError):
        line(*words)


def test_a_near_miss_is_suggested():
    with pytest.raises(UsageError, match="Did you mean --log-level"):
        line("--log-levle", "x")


def test_version_and_help(shell):
    for flag in ("--version", "-V"):
        assert shell.run(flag).stdout == f"dbproxy {__version__}\n"
    for words in (["--help"], ["-h"], ["help"]):
        done = shell.run(*words)
        assert done.returncode == 0
        assert all(f"  {name} " in done.stdout for name in COMMANDS)
        assert "--listen VALUE" in done.stdout
    assert "HTTPS_PROXY" in shell.run("help", "claude").stdout
    assert shell.run("run", "--help").stdout == shell.run("help", "run").stdout
    assert shell.run("help", "doctor").stdout == shell.run("doctor", "--help").stdout


def test_python_dash_m(shell):
    done = subprocess.run(
        [sys.executable, "-m", "dbproxy", "--version"], env=shell.env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"dbproxy {__version__}\n"


@pytest.mark.parametrize(
    "words", [[], ["nonsense"], ["statsu"], ["status", "--nope"], ["logs", "-n", "x"], ["--debug"]]
)
def test_wrong_usage_is_exit_code_2(shell, words):
    done = shell.run(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_an_unknown_command_gets_a_suggestion(shell):
    assert "`dbproxy status`" in shell.run("statsu").stderr


def test_failures_are_one_clear_line_unless_debug_is_asked_for(shell):
    (shell.home / "data").write_text("in the way")
    done = shell.run("start")
    assert done.returncode == 1
    assert done.stderr.startswith("dbproxy: ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" in shell.run("--debug", "start").stderr


def test_an_internal_error_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setattr("dbproxy.cli.daemon.run", lambda args: 1 / 0)
    assert main(["status"]) == 1
    assert capsys.readouterr().err.startswith("dbproxy: internal error: ZeroDivisionError")


def test_errors_inside_a_nursery_are_said_by_name(capsys, monkeypatch):
    from dbproxy.errors import ConfigError

    def fail(args):
        raise ExceptionGroup("nursery", [ExceptionGroup("inner", [ConfigError("the pem is bad")])])

    monkeypatch.setattr("dbproxy.cli.daemon.run", fail)
    assert main(["status"]) == 1
    assert capsys.readouterr().err == "dbproxy: the pem is bad\n"


def test_a_wrong_value_on_the_command_line_is_wrong_usage(shell):
    assert shell.run("--listen", "nonsense", "status").returncode == 2
    assert shell.run("status", DBPROXY_LISTEN="nonsense").returncode == 1


def test_every_command_loads_and_describes_itself(shell):
    for name, command in COMMANDS.items():
        if not command.launches:
            done = shell.run(name, "--help")
            assert done.returncode == 0, done.stderr
            assert f"usage: dbproxy {name}" in done.stdout


def test_the_page_of_commands_is_current():
    assert (ROOT / "docs" / "cli.md").read_text() == page(), "run: python -m dbproxy.cli.help > docs/cli.md"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([], ["claude"]),
        (["-p", "status"], ["claude", "-p", "status"]),
        (["--full-access", "x"], ["claude", "--dangerously-skip-permissions", "x"]),
        (["x", "--", "--full-access"], ["claude", "x", "--", "--full-access"]),
        (["status"], ["status"]),
        (["logs"], ["logs", "-f", "-n", "50"]),
        (["logs", "-n", "3"], ["logs", "-n", "3"]),
        (["uninstall"], ["uninstall"]),
        (["update"], ["claude", "update"]),
    ],
)
def test_the_older_tools_command_line(old, new):
    assert translate(old) == new


def test_statusline_install_and_remove(shell):
    settings = shell.home / ".claude" / "settings.json"
    settings.parent.mkdir()
    original = '{\n    "statusLine": {"type": "command", "command": "echo mine"},\n    "x": [1,2]\n}'
    settings.write_text(original)
    assert "not installed" in shell.run("statusline").stdout
    assert shell.run("statusline", "install").stdout.startswith("installed in")
    once = settings.read_text()
    assert shell.run("statusline", "install").stdout.startswith("already installed")
    assert settings.read_text() == once
    assert shell.run("statusline").stdout.startswith("installed in")
    command = json.loads(once)["statusLine"]["command"]
    shown = subprocess.run(command, shell=True, input="{}", capture_output=True, text=True, env=shell.env)
    assert shown.stdout == "mine\n"
    assert shell.run("statusline", "remove").stdout.startswith("removed from")
    assert settings.read_text() == original
    assert shell.run("statusline", "remove").stdout.startswith("not installed")
    assert not (shell.data / "statusline.sh").exists()


def test_statusline_without_settings_leaves_none_behind(shell):
    shell.run("statusline", "install")
    settings = shell.home / ".claude" / "settings.json"
    assert json.loads(settings.read_text())["statusLine"]["type"] == "command"
    shell.run("statusline", "remove")
    assert not settings.exists()


def test_statusline_keeps_what_was_edited_in_between(shell):
    settings = shell.home / ".claude" / "settings.json"
    settings.parent.mkdir()
    settings.write_text('{"a": 1}')
    shell.run("statusline", "install")
    settings.write_text(settings.read_text().replace('"a": 1', '"a": 2'))
    shell.run("statusline", "remove")
    assert settings.read_text() == '{"a": 2}'


def test_statusline_leaves_broken_settings_alone(shell):
    settings = shell.home / ".claude" / "settings.json"
    settings.parent.mkdir()
    settings.write_text("{broken")
    done = shell.run("statusline", "install")
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert settings.read_text() == "{broken"


def test_uninstall_undoes_and_purge_deletes(shell):
    shell.run("start")
    shell.run("statusline", "install")
    pid = shell.state()["pid"]
    done = shell.run("uninstall")
    assert done.returncode == 0, done.stderr
    assert "background proxy: stopped" in done.stdout
    assert not (shell.home / ".claude" / "settings.json").exists()
    assert (shell.data / "ca").exists()
    shell.run("start")
    assert shell.state()["pid"] != pid
    (shell.data / "mine.txt").write_text("x")
    assert "mine.txt" in shell.run("uninstall", "--purge").stdout
    assert [path.name for path in shell.data.iterdir()] == ["mine.txt"]
    (shell.data / "mine.txt").unlink()
    shell.run("start")
    assert shell.run("uninstall", "--purge").returncode == 0
    assert not shell.data.exists()
    assert shell.run("uninstall", "--purge").returncode == 0


def test_purge_refuses_a_folder_that_is_not_ours(shell):
    precious = shell.home / "precious"
    (precious / "photos").mkdir(parents=True)
    done = shell.run("uninstall", "--purge", DBPROXY_DATA_DIR=str(precious))
    assert done.returncode == 1
    assert (precious / "photos").is_dir()


def test_the_demo_command_hands_over(monkeypatch):
    import dbproxy.testing.demo

    seen = []
    monkeypatch.setattr(dbproxy.testing.demo, "main", lambda argv: seen.append(argv) or 0)
    assert main(["demo", "--keep"]) == 0
    assert seen == [["--keep"]]
