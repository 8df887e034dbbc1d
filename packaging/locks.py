"""Renews the locks beside it: requirements.txt (runtime), -dev.txt (all), -build.txt (the executable).

Versions and hashes, no hosts. They come from pyproject.toml and are valid on every platform. Arguments go to the
resolver, as in `just locks --upgrade` or `just locks --upgrade-package trio`; without any, versions that still fit
stay.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = "packaging/requirements.txt"
DEVELOPMENT = "packaging/requirements-dev.txt"
EXECUTABLE = "packaging/requirements-build.txt"


def compile_lock(output: str, *inputs: str) -> None:
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--python-version", "3.11"]
    command += ["--custom-compile-command", "just locks", *sys.argv[1:], "--output-file", output, *inputs]
    subprocess.run(command, cwd=ROOT, check=True)


def main() -> None:
    compile_lock(RUNTIME, "pyproject.toml", "packaging/build.in")
    # The runtime's versions hold in the other locks too: what is tested is what people run.
    compile_lock(
        DEVELOPMENT, "--extra", "dev", "-c", RUNTIME, "pyproject.toml", "packaging/build.in", "packaging/tools.in"
    )
    # What is frozen is what the runtime lock names, and nothing of the development's.
    compile_lock(EXECUTABLE, "-c", RUNTIME, "pyproject.toml", "packaging/build.in", "packaging/freeze.in")


if __name__ == "__main__":
    main()
