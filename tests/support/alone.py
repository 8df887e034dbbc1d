"""The worker alone as a process: ``python alone.py NAME=VALUE...``, settings by their names."""

from __future__ import annotations

import os
import sys

from dbproxy.app.run import serve_forever
from dbproxy.config import load
from dbproxy.errors import DbproxyError


def texts(error: BaseException) -> list[str]:
    """The messages of our own errors, also inside groups."""
    if isinstance(error, BaseExceptionGroup):
        return [text for part in error.exceptions for text in texts(part)]
    if not isinstance(error, DbproxyError):
        raise error
    return [str(error)]


def main() -> int:
    """Serve until SIGTERM; 1 and a line on stderr if that is impossible."""
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    try:
        return serve_forever(load({"listen": "127.0.0.1:0", **given}, os.environ, None), os.environ)
    except (DbproxyError, BaseExceptionGroup) as error:
        for text in texts(error):
            sys.stderr.write(f"dbproxy: {text}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
