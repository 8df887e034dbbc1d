"""The frame that every test runs in: a scrubbed environment, an own home, skips that count."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
INNER = """
import os, pytest

def test_first():
    open(os.path.expanduser("~/left-over"), "w").close()

def test_second():
    assert os.listdir(os.environ["HOME"]) == []
    assert "HTTPS_PROXY" not in os.environ and "ANTHROPIC_API_KEY" not in os.environ
    assert os.environ["DBPROXY_TEST_MARK"] == "kept"

def test_skipped():
    pytest.skip("no such thing here")
"""


@pytest.fixture
def session(tmp_path):
    """Runs a small test file under our conftest with the given variables."""
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_inner.py").write_text(INNER)

    def run(**variables):
        env = {
            "PATH": os.environ["PATH"],
            "HOME": "/nowhere",
            "HTTPS_PROXY": "http://127.0.0.1:1",
            "ANTHROPIC_API_KEY": "k",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=env | {"DBPROXY_TEST_MARK": "kept"} | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_no_test_sees_the_persons_environment_or_another_tests_home(session):
    result = session()
    assert result.returncode == 0, result.stdout
    assert "2 passed, 1 skipped" in result.stdout


def test_a_skip_fails_a_strict_session_and_is_listed(session):
    result = session(DBPROXY_TEST_STRICT="1")
    assert result.returncode == 1
    assert "test_inner.py::test_skipped: Skipped: no such thing here" in result.stdout
    assert "a skip is a failure here" in result.stdout


def test_offline_a_skip_is_listed_and_allowed(session):
    result = session(DBPROXY_TEST_STRICT="1", DBPROXY_TEST_OFFLINE="1")
    assert result.returncode == 0
    assert "test_skipped: Skipped" in result.stdout
