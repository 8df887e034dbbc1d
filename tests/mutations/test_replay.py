"""The replay of mutations can tell a red test from a green one, and every listed mutation still fits its file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_spec = importlib.util.spec_from_file_location("mutations_replay", HERE / "replay.py")
assert _spec is not None
assert _spec.loader is not None
replay = importlib.util.module_from_spec(_spec)
sys.modules["mutations_replay"] = replay
_spec.loader.exec_module(replay)

CODE = "def double(n):\n    return n * 2\n\n\ndef same(n):\n    return n\n"
TESTS = """
import subprocess, sys
from dbproxy import arithmetic

def test_double():
    assert arithmetic.double(3) == 6

def test_vague():
    assert arithmetic.double(2) > 0

def test_in_a_child():
    child = [sys.executable, "-c", "from dbproxy import arithmetic; print(arithmetic.double(3))"]
    assert subprocess.run(child, capture_output=True, env={}).stdout == b"6\\n"
"""


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "project"
    (root / "dbproxy").mkdir(parents=True)
    (root / "dbproxy" / "__init__.py").write_text("")
    (root / "dbproxy" / "arithmetic.py").write_text(CODE)
    (root / "tests").mkdir()
    (root / "tests" / "test_arithmetic.py").write_text(TESTS)
    return root


def mutation(test="test_double", **changed):
    line = {"item": "X1", "file": "dbproxy/arithmetic.py", "old": "    return n * 2", "new": "    return n * 3"}
    return replay.Mutation(**(line | {"test": f"tests/test_arithmetic.py::{test}"} | changed))


def test_only_a_test_that_notices_counts(tree, capsys):
    complaints = replay.replay_all(tree, [mutation(), mutation("test_in_a_child"), mutation("test_vague")])
    assert complaints == ["X1 tests/test_arithmetic.py::test_vague: survived"]
    assert capsys.readouterr().out.split()[:2] == ["red", "X1"]
    assert (tree / "dbproxy" / "arithmetic.py").read_text() == CODE


def test_a_test_that_fails_anyway_or_is_missing_proves_nothing(tree):
    assert "does not pass" in replay.replay_all(tree, [mutation("test_nowhere")])[0]
    (tree / "dbproxy" / "arithmetic.py").write_text(CODE.replace("* 2", "* 5"))
    assert "does not pass" in replay.replay_all(tree, [mutation()])[0]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"old": "    return n * 9"}, "occurs 0 times"),
        ({"new": "    return n * 2"}, "is the old one"),
        ({"new": "    return n *"}, "no Python"),
    ],
)
def test_a_line_that_does_not_fit_is_said(changed, complaint):
    with pytest.raises(replay.Unusable, match=complaint):
        mutation(**changed).spoil(CODE)


def test_a_line_that_occurs_twice_is_said():
    with pytest.raises(replay.Unusable, match="occurs 2 times"):
        mutation(old="    return n", new="    return 0").spoil(CODE + "\n\ndef again(n):\n    return n\n")


def test_every_listed_mutation_still_fits():
    for listed in replay.read_mutations(sorted(HERE.glob("*.toml"))):
        listed.spoil((ROOT / listed.file).read_text(encoding="utf-8"))
        file, _, name = listed.test.partition("::")
        function = name.rpartition("::")[2].partition("[")[0]
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), listed
