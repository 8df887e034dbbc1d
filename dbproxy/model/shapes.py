"""Reading JSON whose shape nobody guarantees: each helper gives the value if it has the expected type, else a default.

Owns the one place where "an int where a string was promised" is decided. Never imports anything of dbproxy.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

_DECODE: Final = msgspec.json.Decoder().decode
_WRITE: Final = msgspec.json.Encoder().encode
# Bad syntax, bad UTF-8, nesting beyond the interpreter's depth.
UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)


def parse(data: bytes | msgspec.Raw) -> Any:
    """The JSON value in ``data``, None if it holds none. Its strings suit any encoder."""
    value, halves = parse_halves(data)
    return mend_all(value) if halves else value


def parse_halves(data: bytes | msgspec.Raw) -> tuple[Any, bool]:
    """The same, leaving escaped halves of surrogate pairs alone, and whether there may be any.

    A gateway that cuts text by UTF-16 units sends the halves of one character in two events; whoever joins the texts
    calls ``mend`` afterwards.
    """
    try:
        return _DECODE(data), False
    except UNREADABLE:
        pass
    try:
        return json.loads(bytes(data), parse_constant=_refuse), True
    except UNREADABLE:
        return None, False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def mend(text: str) -> str:
    """Text that any encoder takes: surrogate pairs joined, lone halves replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def mend_all(value: Any) -> Any:
    """``mend`` for every string of a JSON value; None if it nests too deeply."""
    try:
        return json.loads(mend(json.dumps(value, ensure_ascii=False)))
    except UNREADABLE:
        return None


def written(value: Any) -> bytes:
    """``value`` as JSON; lone halves of surrogate pairs are escaped. b"" for what is no JSON."""
    try:
        return _WRITE(value)
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError, TypeError, ValueError, RecursionError):
        try:
            return json.dumps(value, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError):
            return b""


def mapping(value: object) -> dict[str, Any]:
    """``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> list[Any]:
    """``value`` if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def text(value: object, default: str = "") -> str:
    """``value`` if it is a string, else ``default``."""
    return value if isinstance(value, str) else default


def count(value: object) -> int:
    """``value`` if it is a whole number above zero, else 0; ``true`` is no number."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
