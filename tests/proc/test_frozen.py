"""The executable's housekeeping, without an executable: the environment, and which versions may go."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dbproxy.proc import env, frozen


def test_the_loaders_changes_are_undone_in_place():
    environ = {
        "LD_LIBRARY_PATH": "/x/_internal:/mine",
        "LD_LIBRARY_PATH_ORIG": "/mine",
        "_PYI_ARCHIVE_FILE": "/x/dbproxy",
        "_PYI_PARENT_PROCESS_LEVEL": "0",
        "HOME": "/h",
    }
    frozen.clean(environ)
    assert environ == {"LD_LIBRARY_PATH": "/mine", "HOME": "/h"}
    # A second pass, as the launcher makes it for its child, finds nothing of the loader: the path is the person's.
    frozen.clean(environ)
    assert environ == env.without_pyinstaller(environ) == {"LD_LIBRARY_PATH": "/mine", "HOME": "/h"}


def test_who_goes_on_without_the_loader_has_what_the_loader_would_have_left():
    wanted = {"LD_LIBRARY_PATH": "/mine", "PYINSTALLER_RESET_ENVIRONMENT": "1", "HOME": "/h"}
    # What the loader makes of it: the path kept aside, its own in front, and its marks.
    loaded = {
        **wanted,
        "LD_LIBRARY_PATH": "/x/_internal:/mine",
        "LD_LIBRARY_PATH_ORIG": "/mine",
        "_PYI_ARCHIVE_FILE": "/x",
    }
    frozen.clean(loaded)
    assert frozen.after_loader(wanted) == loaded == {"LD_LIBRARY_PATH": "/mine", "HOME": "/h"}


def test_a_library_path_that_the_loader_made_goes():
    environ = {"LD_LIBRARY_PATH": "/x/_internal", "_PYI_ARCHIVE_FILE": "/x/dbproxy"}
    frozen.clean(environ)
    assert environ == {}


def test_the_words_to_the_loader_of_a_background_proxy_go_no_further():
    environ = {"PYINSTALLER_RESET_ENVIRONMENT": "1", "A": "b"}
    frozen.clean(environ)
    assert environ == {"A": "b"}


def version(folder, name, age):
    made = folder / name
    made.mkdir(parents=True)
    (made / frozen.MARK).write_text(name + "\n")
    os.utime(made / frozen.MARK, (time.time() - age,) * 2)
    return made


@pytest.fixture
def apps(tmp_path):
    return tmp_path / frozen.VERSIONS


DAY = frozen.KEPT_SECONDS


def test_the_first_start_of_a_day_looks_for_abandoned_versions(apps):
    own = version(apps, "2-a", 10 * DAY)
    assert frozen.hold(str(own)) is True
    assert frozen.hold(str(own)) is False


def test_elsewhere_nothing_is_looked_for(tmp_path):
    own = version(tmp_path / "anywhere", "2-a", 10 * DAY)
    assert frozen.hold(str(own)) is False
    assert time.time() - (own / frozen.MARK).stat().st_mtime > DAY


def test_without_a_mark_there_is_nothing_to_hold(apps):
    apps.mkdir()
    assert frozen.hold(str(apps)) is False


def test_only_what_is_ours_old_and_unused_goes(apps):
    own = version(apps, "2-a", 0)
    version(apps, "1-a", 2 * DAY)
    version(apps, "1-b", DAY / 2)
    held = version(apps, "1-c", 2 * DAY)
    frozen.hold(str(held))  # touches the mark, too
    os.utime(held / frozen.MARK, (1, 1))
    renamed = version(apps, "1-d", 2 * DAY)
    renamed.rename(apps / "somebody's copy")
    (apps / "unmarked").mkdir()
    (apps / "file").touch()
    (apps / "link").symlink_to(own)
    assert frozen.tidy(str(own)) == ["1-a"]
    assert sorted(path.name for path in apps.iterdir()) == [
        "1-b",
        "1-c",
        "2-a",
        "file",
        "link",
        "somebody's copy",
        "unmarked",
    ]


def test_a_start_survives_any_trouble(tmp_path, apps):
    own = version(apps, "2-a", 10 * DAY)
    (apps / "1-a").mkdir()
    (apps / "1-a" / frozen.MARK).mkdir()  # no file
    frozen.look_after(str(own))
    frozen.look_after(str(tmp_path / "nowhere"))


LATER = """
import sys
sys.path.append(sys.argv[1])
from dbproxy.proc import frozen
assert "inspect" not in sys.modules
frozen.put_off("inspect")
import dataclasses, inspect
assert "ast" not in sys.modules, "it was loaded by a mere import"
from inspect import signature
assert "ast" in sys.modules and type(inspect) is type(sys), type(inspect)
assert str(signature(lambda a, *b: 0)) == "(a, *b)" and inspect.getsourcefile(dataclasses)
frozen.put_off("inspect")
assert sys.modules["inspect"] is inspect, "it was loaded already"
frozen.put_off("no_such_module")
assert "no_such_module" not in sys.modules
"""


def test_a_module_is_put_off_until_it_is_used():
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-I", "-S", "-c", LATER, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
