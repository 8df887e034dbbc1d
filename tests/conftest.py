"""What every test gets: a scrubbed environment, an own HOME, and a session that can refuse skips.

Invariants: no test sees a variable of the person who runs it (proxies, keys, client settings) beyond the few that a
program needs to run at all; none reads or writes the person's home; with DBPROXY_TEST_STRICT=1 a skipped test fails the
session, unless DBPROXY_TEST_OFFLINE=1 says that there is no network to fetch the real clients from.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# Modules that several test files share; the test folders themselves are no packages.
sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))

# A program needs these to start; all else could change what a test sees.
_KEPT = ("PATH", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "PATHEXT", "COMSPEC", "COLUMNS", "VIRTUAL_ENV", "CI")
_KEPT_PREFIXES = ("DBPROXY_TEST_", "DBPROXY_BENCH_", "PYTEST_", "HYPOTHESIS_")
_SESSION_HOME = pytest.StashKey[str]()
_homes = itertools.count()
_skips: list[str] = []


def _scrubbed(environment: dict[str, str], home: str) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    # The interpreter that runs the tests is the `python3` that their children find.
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return kept | {"PATH": path, "HOME": home, "USER": "tester", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def pytest_configure(config: pytest.Config) -> None:
    base = tempfile.mkdtemp(prefix="dbproxy-tests-")
    config.stash[_SESSION_HOME] = base
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(_scrubbed(before, base))
    config.add_cleanup(lambda: (os.environ.clear(), os.environ.update(before), shutil.rmtree(base, True)))
    # Wall-clock limits of hypothesis say more about a busy machine than about the code; pytest-timeout guards hangs.
    hypothesis.settings.register_profile("dbproxy", deadline=None, derandomize=_flag("DBPROXY_TEST_STRICT"))
    hypothesis.settings.load_profile("dbproxy")


@pytest.fixture(autouse=True)
def own_home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty HOME for this test alone."""
    home = Path(request.config.stash[_SESSION_HOME], f"home-{next(_homes)}")
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    # Ours, not the program's: it refuses variables with its prefix that it does not know.
    monkeypatch.delenv("DBPROXY_TEST_STRICT", raising=False)
    yield home
    shutil.rmtree(home, ignore_errors=True)


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skips.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skips and _flag("DBPROXY_TEST_STRICT") and not _flag("DBPROXY_TEST_OFFLINE") and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _skips or not _flag("DBPROXY_TEST_STRICT"):
        return
    terminalreporter.section("skips", sep="=")
    for skip in _skips:
        terminalreporter.write_line(skip)
    if not _flag("DBPROXY_TEST_OFFLINE"):
        terminalreporter.write_line("a skip is a failure here; DBPROXY_TEST_OFFLINE=1 allows them", red=True)
