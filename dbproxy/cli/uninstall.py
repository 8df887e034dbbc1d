"""``dbproxy uninstall [--purge]``: undo what dbproxy set up for this user.

Owns the order: status line, background proxy, and with ``--purge`` the files. Invariant: a folder is only deleted when
it is recognisably ours.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from dbproxy.cli.common import load_config, say
from dbproxy.errors import ConfigError, DbproxyError

if TYPE_CHECKING:
    import argparse

    from dbproxy.paths import Paths

_OURS = frozenset({"fingerprint-key", "plugin-data", "ca", "logs", "plugins", "run", "dbproxy.sqlite", "statusline.sh"})


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``uninstall``."""
    parser = subparsers.add_parser(
        "uninstall",
        help="undo everything that dbproxy has set up for this user",
        description="Take the status line out of Claude Code's settings and stop the background proxy. Nothing else "
        "was ever changed outside of dbproxy's own folders; the program itself is removed by what installed it.",
    )
    parser.add_argument(
        "--purge", action="store_true", help="delete the data folder, too: root, logs, captures, plugins"
    )


def run(args: argparse.Namespace) -> int:
    """Undo step by step; a step that fails is said and the others still happen. 1 if one failed."""
    from dbproxy.cli import statusline
    from dbproxy.paths import Paths
    from dbproxy.proc import daemon
    from dbproxy.proc.client import user_settings_path

    paths = Paths(load_config(args.overrides).settings.data_dir)
    failed = False
    try:
        if statusline.remove(paths, user_settings_path(os.environ)):
            print(f"status line removed from {user_settings_path(os.environ)}")
    except (DbproxyError, OSError) as error:
        say(str(error))
        failed = True
    if paths.run.is_dir():
        try:
            print(f"background proxy: {daemon.stop(paths, wait=daemon.CLOSE_TIMEOUT, force=args.purge).value}")
        except (DbproxyError, OSError) as error:
            say(str(error))
            failed = True
    if args.purge and not failed:
        _purge(paths)
    elif paths.data_dir.exists():
        print(f"your data stays in {paths.data_dir}; `dbproxy uninstall --purge` deletes it")
    print("the program itself: remove it with what installed it (pip, pipx, uv), or delete the executable")
    return 1 if failed else 0


def _purge(paths: Paths) -> None:
    folder = paths.data_dir
    if not folder.exists():
        return
    names = {entry.name for entry in folder.iterdir()}
    if folder.is_symlink() or (names and not {"ca", "run"} & names):
        raise ConfigError(f"{folder} does not look like dbproxy's data folder", hint="Delete it yourself if it is")
    foreign = sorted(names - _OURS - {name for name in names if name.startswith(("dbproxy.sqlite", "statusline"))})
    for name in sorted(names - set(foreign)):
        target = folder / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink()
    if foreign:
        print(f"kept in {folder}, for it is not ours: {', '.join(foreign)}")
    else:
        folder.rmdir()
        print(f"deleted {folder}")
