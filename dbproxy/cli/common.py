"""What several commands share: loading the configuration, and talking to the person.

Must never import trio or the network.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dbproxy.cli.options import UsageError
from dbproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbproxy.config import Config


def load_config(
    overrides: Mapping[str, object], env: Mapping[str, str] | None = None, *, project: bool = True
) -> Config:
    """The configuration of this process: command line over environment over files.

    ``env`` stands for the process's own environment; ``project`` False leaves a project file out. Raises UsageError
    when the command line is what is wrong, ConfigError for anything else.
    """
    from dbproxy.config import load

    env = os.environ if env is None else env
    folder = current_folder() if project else None
    try:
        return load(overrides, env, folder)
    except ConfigError as error:
        if not overrides:
            raise
        try:
            load({}, env, folder)
        except ConfigError:
            raise error from None
        raise UsageError(str(error)) from None


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
