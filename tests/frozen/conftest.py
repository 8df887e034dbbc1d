"""The executable under test: built once for these sources, and ways to start it as a stranger's machine would."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "tests" / "realclient")]


def load_freeze():
    spec = importlib.util.spec_from_file_location("freeze_under_test", ROOT / "packaging" / "freeze.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Built:
    """What the build made: the folder, the one file, and the archive."""

    folder: Path
    single: Path
    archive: Path

    @property
    def program(self) -> Path:
        return self.folder / "dbproxy"

    @property
    def name(self) -> str:
        return (self.folder / "BUILD").read_text().strip()


def make(version: str = "") -> Built:
    freeze = load_freeze()
    try:
        made = freeze.build(version)
    except freeze.NoLibrary as error:
        pytest.skip(str(error))
    except freeze.NoPackages:
        if not freeze.is_offline():
            raise
        pytest.skip("without network the packages that build the executable cannot be had")
    archive = next(made.glob("dbproxy-*.tar.gz"))
    return Built(made / "dbproxy", archive.with_name(archive.name.removesuffix(".tar.gz")), archive)


@pytest.fixture(scope="session")
def built() -> Built:
    """The finished build; one of these very sources is used again."""
    return make()


@pytest.fixture(scope="session")
def built_next() -> Built:
    """The same sources built once more as a version that is newer than any."""
    return make("99.0.1")


@pytest.fixture
def start(own_home: Path):
    """Runs a command with little more than a home, as a shell would; keyword arguments are further variables."""

    def run(*command: object, timeout: float = 60.0, cwd: Path | None = None, **variables: str):
        env = {"HOME": str(own_home), "PATH": os.defpath, "LANG": "C.UTF-8", "DBPROXY_LISTEN": "127.0.0.1:0"}
        return subprocess.run(
            [str(word) for word in command],
            env=env | variables,
            cwd=cwd or own_home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


PLACE = (sys.executable, str(Path(__file__).with_name("place.py")))


@pytest.fixture(scope="session")
def place() -> tuple[str, ...]:
    """The command that puts others into special places."""
    tried = subprocess.run([*PLACE, "--", "true"], capture_output=True, text=True, timeout=60, check=False)
    if tried.returncode:
        pytest.skip(f"this needs root or user namespaces: {tried.stderr.strip()}")
    return PLACE


@pytest.fixture
def read_only_everywhere(place, own_home: Path) -> list[str]:
    """Goes before a command that shall find no folder for temporary files."""
    folders = [folder for folder in ("/tmp", "/var/tmp", "/usr/tmp") if Path(folder).is_dir()]
    return [*place, *(word for folder in folders for word in ("--read-only", folder)), "--"]


@pytest.fixture
def aside() -> Iterator[Path]:
    """A folder that is not below any folder for temporary files, wherever this working tree and the homes lie."""
    folder = Path(tempfile.mkdtemp(prefix="dbproxy-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
