#!/usr/bin/env python3
"""From a clean clone to a running command: makes .venv, installs the locked packages, runs one recipe.

    python3 packaging/bootstrap.py demo           the demo: no account, no network
    python3 packaging/bootstrap.py test [ARGS]    every test, as the continuous integration runs them
    python3 packaging/bootstrap.py just [ARGS]    any other recipe of the justfile

Needs git's working tree and a Python from 3.11 on with venv and pip; nothing else of the project, so it imports the
standard library alone and stays readable by older Pythons far enough to say what is wrong.
Packages come from the two locks beside this file: versions and hashes, no addresses. A second run with the same
locks, project files and interpreter installs nothing.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
EXE = ".exe" if os.name == "nt" else ""
PYTHON = os.path.join(BIN, "python" + EXE)
OLDEST = (3, 11)


class Failed(Exception):
    """What went wrong and what to do, in words for the person at the terminal."""


def lock_for(kind: str) -> str:
    return os.path.join(ROOT, "packaging", "requirements.txt" if kind == "runtime" else "requirements-dev.txt")


def plugin_folders() -> list[str]:
    folder = os.path.join(ROOT, "plugins")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [
        os.path.join(folder, name) for name in names if os.path.isfile(os.path.join(folder, name, "pyproject.toml"))
    ]


def fingerprint(kind: str) -> str:
    """Digest over all that decides what an installation contains."""
    digest = hashlib.sha256(ROOT.encode())
    files = [os.path.join(VENV, "pyvenv.cfg"), lock_for(kind), os.path.join(ROOT, "pyproject.toml")]
    files += [os.path.join(folder, "pyproject.toml") for folder in plugin_folders()]
    for path in files:
        digest.update(os.path.relpath(path, ROOT).encode())
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def stamp_file(kind: str) -> str:
    return os.path.join(VENV, "installed-" + kind)


def is_current(kind: str) -> bool:
    """The development lock contains the runtime's, so its stamp serves both."""
    for have in {kind, "dev"}:
        try:
            with open(stamp_file(have)) as file:
                if file.read() == fingerprint(have):
                    return True
        except OSError:
            continue
    return False


def call(what: str, command: list[str]) -> None:
    # The build backend warns about editable installs as such; nobody can act on that.
    env = dict(os.environ, PYTHONWARNINGS="ignore")
    try:
        subprocess.run(command, cwd=ROOT, env=env, check=True)
    except OSError as error:
        raise Failed(f"{what}: cannot start {command[0]} ({error})") from error
    except subprocess.CalledProcessError as error:
        words = " ".join(map(shlex.quote, command))
        raise Failed(f"{what} failed (exit {error.returncode}): {words}") from error


def make_venv() -> None:
    """A virtual environment with pip; a broken one (its interpreter was removed) is made anew in place."""
    probe = [PYTHON, "-c", f"import sys, pip; sys.exit(sys.version_info < {OLDEST})"]
    if os.path.exists(PYTHON):
        try:
            if subprocess.run(probe, check=False, stderr=subprocess.DEVNULL).returncode == 0:
                return
        except OSError:
            pass
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise Failed(
            f"this Python ({sys.executable}) has no venv or no ensurepip.\nOn Debian and Ubuntu: apt install "
            "python3-venv; elsewhere use a Python from python.org, pyenv or your distribution's full package. "
            "Then run the same command again."
        ) from error
    print("bootstrap: making .venv", flush=True)
    call("making the virtual environment", [sys.executable, "-m", "venv", "--clear", VENV])


def install(kind: str) -> None:
    if is_current(kind):
        return
    make_venv()
    for name in ("runtime", "dev"):
        if os.path.exists(stamp_file(name)):
            os.unlink(stamp_file(name))
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    print("bootstrap: installing the packages of " + os.path.relpath(lock_for(kind), ROOT), flush=True)
    call("installing the locked packages", [*pip, "--require-hashes", "--no-deps", "-r", lock_for(kind)])
    editable = [argument for folder in [ROOT, *plugin_folders()] for argument in ("--editable", folder)]
    call("installing dbproxy", [*pip, "--no-deps", "--no-index", "--no-build-isolation", *editable])
    with open(stamp_file(kind), "w") as file:
        file.write(fingerprint(kind))


def environment() -> dict[str, str]:
    """The recipe finds the venv's programs first; nothing else of the caller's environment changes."""
    env = dict(os.environ, VIRTUAL_ENV=VENV, PATH=BIN + os.pathsep + os.environ.get("PATH", os.defpath))
    env.pop("PYTHONHOME", None)
    env.pop("PYTHONPATH", None)
    return env


def main(arguments: list[str]) -> int:
    if sys.version_info < OLDEST:
        version = sys.version.split()[0]
        raise Failed(
            f"dbproxy needs Python 3.11 or newer; {sys.executable} is {version}. Start this file with a newer one."
        )
    if not arguments or arguments[0] not in ("demo", "test", "just"):
        print(__doc__.strip())
        return 0 if arguments in (["-h"], ["--help"]) else 2
    command, rest = arguments[0], arguments[1:]
    if command == "demo":
        install("runtime")
        recipe = [PYTHON, "-m", "dbproxy", "demo", *rest]
    else:
        install("dev")
        just = [os.path.join(BIN, "just" + EXE), "--justfile", os.path.join(ROOT, "justfile")]
        recipe = [*just, "test", *rest] if command == "test" else [*just, *rest]
    try:
        return subprocess.run(recipe, check=False, cwd=ROOT, env=environment()).returncode
    except OSError as error:
        raise Failed(f"cannot start {recipe[0]} ({error}); remove {VENV} and run the same command again") from error


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failed as failure:
        print(f"bootstrap: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
