"""``dbproxy statusline [install / remove]``: puts our script beside the client's status line, and takes it away.

Owns the order of the steps and the backup; texts and edits are in ``dbproxy.proc.statusline``. Invariant: only
``install`` and ``remove`` write, and only the client's user settings and files of ours.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from dbproxy.cli.common import load_config

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from dbproxy.paths import Paths


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``statusline``."""
    parser = subparsers.add_parser(
        "statusline",
        help="show in Claude Code's status line whether a session goes through dbproxy",
        description="Show in Claude Code's status line whether this very session was seen by dbproxy. `install` edits "
        "the user settings of Claude Code and nothing else; a status line that is there keeps running beside ours; "
        "`remove` restores it. Without a word: say whether it is installed.",
    )
    parser.add_argument("action", nargs="?", choices=("install", "remove"), help="edit Claude Code's user settings")


def run(args: argparse.Namespace) -> int:
    """Install, remove or report."""
    from dbproxy.paths import Paths
    from dbproxy.proc.client import user_settings_path

    paths = Paths(load_config(args.overrides).settings.data_dir)
    settings = user_settings_path(os.environ)
    if args.action == "install":
        print("installed in" if install(paths, settings) else "already installed in", settings)
    elif args.action == "remove":
        print("removed from" if remove(paths, settings) else "not installed in", settings)
    else:
        from dbproxy.proc import statusline

        text = statusline.read_text(settings)
        there = text is not None and statusline.is_installed(text, script_path(paths))
        print("installed in" if there else "not installed in", settings)
        if not there:
            print("`dbproxy statusline install` puts it there, beside a status line that you may have")
    return 0


def script_path(paths: Paths) -> Path:
    """Where the generated script stands."""
    return paths.data_dir / "statusline.sh"


def install(paths: Paths, settings: Path) -> bool:
    """Write the script and put it into the settings. False when it was there already. ConfigError."""
    from dbproxy.paths import make_private, write_private
    from dbproxy.proc import statusline

    before = statusline.read_text(settings)
    after = statusline.installed(before or "", script_path(paths))
    make_private(paths.data_dir)
    write_private(script_path(paths), statusline.script(paths.run))
    script_path(paths).chmod(0o700)
    if before == after:
        return False
    write_private(_backup_path(paths), json.dumps({"before": before, "after": _digest(after)}))
    statusline.replace_text(settings, after)
    return True


def remove(paths: Paths, settings: Path) -> bool:
    """Take the script out of the settings and delete it. False when it was not there. ConfigError.

    Settings that nobody edited since the installation become byte for byte what they were; otherwise only our entry
    is taken back.
    """
    from dbproxy.proc import statusline

    current = statusline.read_text(settings)
    found = False
    if current is not None:
        recorded, original = _recorded(paths, current)
        wanted = original if recorded else statusline.removed(current, script_path(paths))
        found = wanted != current
        if wanted is None:
            settings.unlink()
        elif found:
            statusline.replace_text(settings, wanted)
    for path in (script_path(paths), _backup_path(paths)):
        path.unlink(missing_ok=True)
    return found


def _recorded(paths: Paths, current: str) -> tuple[bool, str | None]:
    """Whether the settings are as our installation left them, and what they were before (None: no file)."""
    try:
        record = json.loads(_backup_path(paths).read_bytes())
        before = record["before"]
        if record["after"] == _digest(current) and (before is None or isinstance(before, str)):
            return True, before
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return False, None


def _backup_path(paths: Paths) -> Path:
    return paths.data_dir / "statusline-backup.json"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
