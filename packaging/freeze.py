"""Builds the executable from the working tree: `just freeze`, or `python packaging/freeze.py [--out FOLDER]`.

PyInstaller runs in an environment of its own with exactly the packages of requirements-build.txt, by version and hash;
dbproxy and the plugins of bundle.toml are built as wheels and installed beside them. Results are kept in .cache/frozen
under a digest of everything that went in, so that nothing is built twice; ``build()`` is what the tests call.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "frozen"
LOCK = ROOT / "packaging" / "requirements-build.txt"
RECIPE = ("freeze.py", "onefile.py", "elf.py", "bundle.toml", "install.sh")
KEPT_BUILDS = 4


OFFLINE = "DBPROXY_TEST_OFFLINE"


class Failed(Exception):
    """What went wrong and what to do, for the person at the terminal."""


class NoPackages(Failed):
    """The packages of the lock cannot be had."""


class NoLibrary(Failed):
    """This Python cannot be frozen: its shared library is missing."""


def plugins() -> list[Path]:
    import tomllib

    names = tomllib.loads((ROOT / "packaging" / "bundle.toml").read_text())["plugins"]
    folders = [ROOT / "plugins" / name for name in names]
    for folder in folders:
        if not (folder / "pyproject.toml").is_file():
            raise Failed(f"packaging/bundle.toml names {folder.name}, but {folder} holds no pyproject.toml")
    return folders


def sources() -> list[Path]:
    """Every file that the result depends on, but the interpreter and the packages of the lock."""
    found = [LOCK, ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE", ROOT / "pyinstaller.spec"]
    found += [ROOT / "packaging" / name for name in RECIPE]
    for folder in (ROOT / "dbproxy", ROOT / "packaging" / "frozen", *plugins()):
        found += [path for path in folder.rglob("*") if path.is_file() and not _skipped(path)]
    return sorted(set(found))


def _skipped(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    ours = parts[0] == "plugins" and "tests" in parts
    return ours or any(part in ("__pycache__", "build") or part.endswith((".egg-info", ".pyc")) for part in parts)


def fingerprint(version: str = "") -> str:
    """Digest of all that goes in."""
    total = hashlib.sha256(f"{sys.version}\0{platform.platform()}\0{version}\0".encode())
    for path in sources():
        content = path.read_bytes()
        total.update(f"{path.relative_to(ROOT)}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:16]


def build(version: str = "") -> Path:
    """The folder with the finished executables, built if these sources were not built before.

    With a ``version`` they call themselves that, and differ in nothing else: what an upgrade is tested with.
    """
    with _one_at_a_time():
        target = CACHE / "builds" / fingerprint(version)
        if not (target / "complete").is_file():
            shutil.rmtree(target, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix="build-", dir=CACHE) as scratch:
                made = _build(Path(scratch), version)
                target.parent.mkdir(exist_ok=True)
                shutil.move(made, target)
            (target / "complete").touch()
        os.utime(target)
        _forget_old()
    return target


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget_old() -> None:
    builds = sorted((CACHE / "builds").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in builds[KEPT_BUILDS:]:
        shutil.rmtree(old, ignore_errors=True)


def is_offline() -> bool:
    return os.environ.get(OFFLINE, "") not in ("", "0")


def _run(what: str, command: list[str], **variables: str) -> None:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYINSTALLER", "PIP_REQ"))
    }
    done = subprocess.run(
        command,
        env=kept | variables,
        cwd=CACHE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"{what} failed (exit {done.returncode}):\n{done.stdout[-4000:]}")


def _environment() -> Path:
    """The interpreter of an environment with the locked packages; made anew when the lock changes."""
    stamp = hashlib.sha256(LOCK.read_bytes() + sys.version.encode() + sys.base_prefix.encode()).hexdigest()
    folder = CACHE / "environment"
    python = folder / "bin" / "python"
    if (folder / "stamp").is_file() and (folder / "stamp").read_text() == stamp and python.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    _run("making the build environment", [sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    try:
        _run("installing the locked packages", [*pip, "--require-hashes", "--no-deps", "-r", str(LOCK)])
    except Failed as error:
        raise NoPackages(str(error)) from None
    (folder / "stamp").write_text(stamp)
    return python


def _rename_version(source: Path, version: str) -> None:
    """Let the sources in this folder call themselves ``version``."""
    for name, line in (("dbproxy/__init__.py", "__version__ = "), ("pyproject.toml", "version = ")):
        text = (source / name).read_text()
        start = text.index(line) if text.startswith(line) else text.index("\n" + line) + 1
        (source / name).write_text(f'{text[:start]}{line}"{version}"{text[text.index(chr(10), start) :]}')


def _build(scratch: Path, version: str) -> Path:
    python = _environment()
    # Copies, because building a wheel writes into its source.
    for path in sources():
        copy = scratch / "source" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    source = scratch / "source"
    if version:
        _rename_version(source, version)
    site, result = scratch / "site", scratch / "result"
    folders = [str(source), *(str(source / folder.relative_to(ROOT)) for folder in plugins())]
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    _run("building the wheels", [*install, "--no-build-isolation", "--target", str(site), *folders])
    command = [str(python), "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN"]
    command += ["--distpath", str(result), "--workpath", str(scratch / "steps"), str(source / "pyinstaller.spec")]
    try:
        _run(
            "PyInstaller",
            command,
            PYTHONPATH=str(site),
            PYTHONHASHSEED="0",
            SOURCE_DATE_EPOCH="946684800",
            PYINSTALLER_CONFIG_DIR=str(scratch / "pyinstaller"),
        )
    except Failed as error:
        if "shared library" in str(error) or "Python library" in str(error):
            last = str(error).strip().splitlines()[-1].removeprefix("ERROR: ")
            raise NoLibrary(f"{sys.base_prefix} cannot be frozen. {last}") from None
        raise
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the results go (default: dist)")
    parser.add_argument("--for-tests", action="store_true", help="go on where tests can be skipped for a good reason")
    parser.add_argument("--version", default="", metavar="VERSION", help="let it call itself that, to test an upgrade")
    options = parser.parse_args()
    try:
        made = build(options.version)
    except NoLibrary as failure:
        # Nearly every test can do without; a strict run fails by the skips that follow.
        print(f"freeze: {failure}", file=sys.stderr)
        return 0 if options.for_tests else 1
    except NoPackages as failure:
        if is_offline() and options.for_tests:
            print(f"{OFFLINE} is set, and the build's packages are not here: the executable's tests will be skipped")
            return 0
        print(f"freeze: {failure}\nWithout network, set {OFFLINE}=1 to test everything else.", file=sys.stderr)
        return 1
    except Failed as failure:
        print(f"freeze: {failure}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(made.glob("dbproxy*")):
        target = options.out / path.name
        if target.is_dir():
            shutil.rmtree(target)
            shutil.copytree(path, target, symlinks=True)
        elif path.is_dir():
            shutil.copytree(path, target, symlinks=True)
        else:
            shutil.copy2(path, target)
        size = sum(
            file.lstat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if not file.is_dir()
        )
        print(f"{size / 1e6:6.1f} MB  {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
