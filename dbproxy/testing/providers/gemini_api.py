"""The fake Gemini API's endpoint: generateContent, whole and streamed.

Owns who may ask, and how errors look. Source: API facts 5.4; rules in ``gemini_rules``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from dbproxy.testing.providers import gemini
from dbproxy.testing.providers.asked import Asked
from dbproxy.testing.providers.endpoint import Endpoint, matching
from dbproxy.testing.providers.objections import Objection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.testing.codecs.dialect import Counts, Said, Speech
    from dbproxy.testing.origin.received import Received
    from dbproxy.testing.origin.script import Answer

_PATH: Final = re.compile(r"/v1beta/models/([^/:]+):(generateContent|streamGenerateContent)\Z")
#: Models that exist; others get 404.
KNOWN: Final = ("gemini-*",)


class Gemini(Endpoint):
    """POST /v1beta/models/MODEL:generateContent and :streamGenerateContent?alt=sse."""

    name = "gemini"
    dialect = gemini.GeminiDialect()

    def __init__(self, *, prefix: str = "", models: Sequence[str] = KNOWN) -> None:
        self._prefix = prefix
        self._models = models

    def takes(self, request: Received) -> bool:
        return request.method == "POST" and self._match(request) is not None

    def _match(self, request: Received) -> re.Match[str] | None:
        path = request.path
        return _PATH.match(path.removeprefix(self._prefix)) if path.startswith(self._prefix) else None

    def authorise(self, request: Received, key: str) -> None:
        """The key stands in a field; in the query it would end up in logs, so it is not taken there. Texts [iss]."""
        given = request.header("x-goog-api-key")
        if not given:
            raise Objection("Method doesn't allow unregistered callers. Please use API Key.", status=403)
        if given != key:
            raise Objection("API key not valid. Please pass a valid API key.")

    def read(self, request: Received, body: dict[str, Any]) -> Asked:
        found = self._match(request)
        assert found is not None
        model, method = found.groups()
        if not matching(self._models, model):
            raise Objection(f"models/{model} is not found for API version v1beta.", status=404)
        streamed = method == "streamGenerateContent"
        if streamed and parse_qs(request.query).get("alt") != ["sse"]:
            raise Objection("Only alt=sse is known here.")  # without it the real one sends one JSON array in pieces
        return Asked.of(request, gemini.understood(model, body, streamed=streamed))

    def speech(self, asked: Asked, answer: Answer, id: str) -> Speech:
        return gemini.GeminiSpeech(model=answer.model or asked.model, id=id)

    def document(
        self, asked: Asked, answer: Answer, id: str, parts: Sequence[Said], stop: str, counts: Counts
    ) -> dict[str, Any]:
        return gemini.answer(parts, stop, counts, model=answer.model or asked.model, id=id)

    def fault(self, objection: Objection) -> dict[str, Any]:
        return gemini.fault(objection.status, objection.message)

    def overflow(self, tokens: int, limit: int) -> Objection:
        """seed-001 4.3 [iss]."""
        return Objection(f"The input token count ({tokens}) exceeds the maximum number of tokens allowed ({limit}).")
