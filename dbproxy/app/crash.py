"""What counts as a crash of ours, and how it is told without telling what was in it.

Exceptions carry values (header lines, bodies, tokens); logs may not. Pure; imports nothing of dbproxy.
"""

from __future__ import annotations

#: What ends one connection or one chore instead of the server. SystemExit is a ``sys.exit`` in the wrong place.
CRASHES = (Exception, SystemExit)


def describe_crash(error: BaseException) -> str:
    """Type and place of a crash, never its text."""
    place = None
    while True:
        step = error.__traceback__
        while step is not None:
            place, step = step, step.tb_next
        if not isinstance(error, BaseExceptionGroup):
            break
        error = error.exceptions[0]
    if place is None:
        return type(error).__name__
    file = place.tb_frame.f_code.co_filename.replace("\\", "/")
    file = file.rpartition("site-packages/")[2].rpartition("/dbproxy/")[2]
    return f"{type(error).__name__} at {file}:{place.tb_lineno}"
