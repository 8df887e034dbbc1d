"""A fake server for any dialect: what the author of a codec gets for nothing out of the `Dialect` that the kit wants.

Owns one endpoint at one path. It refuses only what the dialect's ``read`` refuses, and tells errors as
``{"error": {"type", "message"}}``, which `failure_of` understands.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dbproxy.testing.providers.asked import Asked
from dbproxy.testing.providers.endpoint import Endpoint
from dbproxy.testing.providers.objections import Objection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.testing.codecs.dialect import Counts, Dialect, Said, Speech
    from dbproxy.testing.origin.received import Received
    from dbproxy.testing.origin.script import Answer


class Anybody(Endpoint):
    """POST ``path``, in ``dialect``. ``field`` is the header field that must hold the key, "" for none."""

    def __init__(self, dialect: Dialect, path: str, *, field: str = "") -> None:
        self.name = dialect.name
        self.dialect = dialect
        self._path = path
        self._field = field

    def takes(self, request: Received) -> bool:
        return request.method == "POST" and request.path == self._path

    def authorise(self, request: Received, key: str) -> None:
        if self._field and request.header(self._field) not in (key, f"Bearer {key}"):
            raise Objection("The key is missing or wrong.", status=401, kind="authentication_error")

    def read(self, request: Received, body: dict[str, Any]) -> Asked:
        try:
            return Asked.of(request, self.dialect.read(request.decoded))
        except Objection:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Objection(f"The request is not understood: {error!r}") from error

    def speech(self, asked: Asked, answer: Answer, id: str) -> Speech:
        return self.dialect.speak()

    def document(
        self, asked: Asked, answer: Answer, id: str, parts: Sequence[Said], stop: str, counts: Counts
    ) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.dialect.document(parts, stop, counts))
        return found

    def fault(self, objection: Objection) -> dict[str, Any]:
        return {"error": {"type": objection.kind, "message": objection.message}}

    def overflow(self, tokens: int, limit: int) -> Objection:
        return Objection(f"The context window is {limit} tokens; the prompt has {tokens}.")
