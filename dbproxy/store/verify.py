"""Proves that what was kept is what was sent: every request body rebuilt and compared with its digest.

Owns the comparison. Reads through a ``Reader``, never writes. Invariants: a damaged exchange is reported and does not
end the check of the others; a file that grows meanwhile is checked up to where it stood at the start.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from dbproxy.store.rows import Check, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbproxy.store.reader import Reader

_PAGE: Final = 200


def verify(reader: Reader, *, since: str | None = None) -> Iterator[Check]:
    """Check every exchange, oldest first, from the id ``since`` on. Raises Unreadable if the file itself fails."""
    connection = reader.connection
    newest = connection.row("SELECT max(id) FROM exchange")
    last = newest[0] if newest else None
    at, operator = since or "", ">="
    while last is not None:
        rows = connection.rows(
            f"SELECT id, body_kind, body_sha256, body_inexact, message IS NOT NULL, stream IS NOT NULL FROM exchange"
            f" WHERE id {operator} ? AND id <= ? ORDER BY id LIMIT {_PAGE}",
            [at, last],
        )
        for id, kind, sha256, inexact, has_message, has_stream in rows:
            yield _check(reader, id, kind, sha256, bool(inexact), bool(has_message), bool(has_stream))
        if len(rows) < _PAGE:
            return
        at, operator = rows[-1][0], ">"


def _check(
    reader: Reader, id: str, kind: str, sha256: bytes | None, inexact: bool, has_message: bool, has_stream: bool
) -> Check:
    try:
        body = reader.content.request_body(id)
        if has_message:
            reader.content.message(id)
        if has_stream:
            reader.content.stream(id)
    except Unreadable as error:
        # Pruned between the list and now is not damage.
        row = reader.connection.row("SELECT body_kind FROM exchange WHERE id = ?", [id])
        if row is None or row[0] not in ("parts", "raw", kind):
            return Check(id, "absent", "pruned meanwhile")
        return Check(id, "wrong", str(error.__cause__ or error))
    if body is None:
        if kind in ("parts", "raw") and reader.connection.row(
            "SELECT 1 FROM exchange WHERE id = ? AND body_kind = ?", [id, kind]
        ):
            return Check(id, "wrong", "the body's pieces are not in the file")
        return Check(id, "absent", "" if kind == "none" else kind)
    if sha256 is None:
        return Check(id, "wrong", "its digest is missing")
    if hashlib.sha256(body).digest() == sha256:
        return Check(id, "inexact" if inexact else "exact")
    return Check(id, "wrong", f"{len(body)} bytes whose digest is not the one of what was sent")
