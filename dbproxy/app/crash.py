"""What counts as a crash of ours, and how it is told without telling what was in it.

Exceptions carry values (header lines, bodies, tokens); logs may not. Pure; imports nothing of dbproxy.
"""

from __future__ import annotations

#: What ends one connection or one chore instead of the server. SystemExit is a ``sys.exit`` in the wrong place.
CRASHES = (Exception, SystemExit)


def describe_crash(error: BaseException) -> str:
    """Type and place of a crash, never its text."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return type(error).__name__
    file = place.tb_frame.f_code.co_filename.replace("\\", "/")
    file = file.rpartition("site-packages/")[2].rpartition("/dbproxy/")[2]
    return f"{type(error).__name__} at {file}:{place.tb_lineno}"
