"""What several commands share: loading the configuration, and talking to the person.

Must never import trio or the network.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbproxy.config import Config


def load_config(overrides: Mapping[str, object]) -> Config:
    """The configuration of this process: command line over environment over files. ConfigError when it is wrong."""
    from dbproxy.config import load

    return load(overrides, os.environ, current_folder())


def current_folder() -> Path | None:
    """The working directory, or None when it was removed under us."""
    try:
        return Path.cwd()
    except OSError:
        return None


def say(text: str) -> None:
    """One line on stderr, where launchers speak: stdout belongs to the child."""
    print(f"dbproxy: {text}", file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """Machine-readable output, one document."""
    print(json.dumps(value, indent=2, sort_keys=True))
