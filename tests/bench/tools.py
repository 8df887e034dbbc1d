"""What the bench needs from outside: the compiled load tool and the peers, each named when it is missing.

Owns finding, building and installing; starts nothing that lasts. Never skips: what is missing ends the bench.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "bench"
SOURCE = Path(__file__).with_name("lt.c")

#: How to get each program on Debian and its kin.
PACKAGES = {"nginx": "nginx", "haproxy": "haproxy", "cc": "gcc", "headers": "libssl-dev"}


class Missing(Exception):
    """A peer or a tool is not there, so the ratios cannot be measured."""


def program(name: str) -> str:
    """The path of an installed program. Raises Missing with the package that brings it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        raise Missing(f"{name} is missing; on Debian: apt-get install -y {PACKAGES[name]}")
    return found


def load_tool() -> str:
    """The load tool, compiled when its source has changed."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    binary = CACHE / f"lt-{digest}"
    if not binary.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [program("cc"), "-O2", "-Wall", str(SOURCE), "-lssl", "-lcrypto", "-o", str(binary) + ".new"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            first = done.stderr.strip().splitlines()[:3]
            raise Missing(
                f"lt.c does not compile; on Debian: apt-get install -y {PACKAGES['cc']} {PACKAGES['headers']}\n"
                + "\n".join(first)
            )
        Path(str(binary) + ".new").rename(binary)
    return str(binary)


def mitmdump() -> str:
    """mitmdump, installed at first use."""
    return _from_pypi("mitmproxy", "mitmproxy", "mitmdump")


def litellm() -> str:
    """litellm with its proxy, installed at first use."""
    return _from_pypi("litellm", "litellm[proxy]", "litellm")


def _from_pypi(name: str, wanted: str, program: str) -> str:
    """A program in a virtual environment of its own, the newest release that this Python takes."""
    folder = CACHE / name
    binary = folder / "bin" / program
    if not binary.exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"installing {name} once ...", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True)
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", wanted]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode or not binary.exists():
            shutil.rmtree(folder, ignore_errors=True)
            raise Missing(f"{name} could not be installed from PyPI: {done.stderr.strip()[-300:]}")
    return str(binary)


def version(command: list[str]) -> str:
    """The first line that says a version."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"
