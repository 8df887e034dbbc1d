"""The fake OpenAI API's endpoints: Chat Completions and Responses.

Owns who may ask, and how errors look. Source: API facts 5.1 and 5.2; rules in ``chat_rules`` and
``responses_rules``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from dbproxy.testing.providers import chat, openai_models, responses
from dbproxy.testing.providers.asked import Asked
from dbproxy.testing.providers.endpoint import Endpoint, matching
from dbproxy.testing.providers.objections import Objection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.testing.codecs.dialect import Counts, Said, Speech
    from dbproxy.testing.origin.received import Received
    from dbproxy.testing.origin.script import Answer


class _OpenAI(Endpoint):
    """What both endpoints share. ``prefix`` stands before ``/v1``; ``models`` are patterns of those that exist."""

    path: ClassVar[str]

    def __init__(self, *, prefix: str = "", models: Sequence[str] = openai_models.KNOWN) -> None:
        self._path = f"{prefix}/v1/{self.path}"
        self._models = models

    def takes(self, request: Received) -> bool:
        return request.method == "POST" and request.path == self._path

    def authorise(self, request: Received, key: str) -> None:
        """A wrong key is repeated in the answer, its middle starred out, as the real one does (case 82) [iss]."""
        given = request.header("authorization") or ""
        if not given.startswith("Bearer ") or not given[7:]:
            raise Objection("You didn't provide an API key.", status=401)
        if given[7:] != key:
            shown = given[7:11] + "*" * 8 + given[-4:]
            raise Objection(f"Incorrect API key provided: {shown}.", status=401, code="invalid_api_key")

    def read(self, request: Received, body: dict[str, Any]) -> Asked:
        model = body.get("model")
        if isinstance(model, str) and not matching(self._models, model):  # [iss]
            told = f"The model `{model}` does not exist or you do not have access to it."
            raise Objection(told, status=404, code="model_not_found")
        return Asked.of(request, self.dialect.read(request.decoded))

    def fault(self, objection: Objection) -> dict[str, Any]:
        return chat.fault(objection.kind, objection.message, param=objection.param or None, code=objection.code or None)

    def overflow(self, tokens: int, limit: int) -> Objection:
        """seed-001 4.3 [iss]."""
        return Objection(
            f"This model's maximum context length is {limit} tokens. However, your messages resulted in {tokens} "
            "tokens. Please reduce the length of the messages.",
            param="messages",
            code="context_length_exceeded",
        )


class Chat(_OpenAI):
    """POST /v1/chat/completions. ``reasoning`` is the key under which thinking is told (seed-001 4.2)."""

    name = "chatcmpl"
    path = "chat/completions"
    dialect = chat.ChatDialect()

    def speech(self, asked: Asked, answer: Answer, id: str) -> Speech:
        counted = bool((asked.json.get("stream_options") or {}).get("include_usage"))
        return chat.ChatSpeech(model=answer.model or asked.model, id=id, counted=counted)

    def document(
        self, asked: Asked, answer: Answer, id: str, parts: Sequence[Said], stop: str, counts: Counts
    ) -> dict[str, Any]:
        return chat.completion(parts, stop, counts, model=answer.model or asked.model, id=id)


class Responses(_OpenAI):
    """POST /v1/responses."""

    name = "resp"
    path = "responses"
    dialect = responses.ResponsesDialect()

    def speech(self, asked: Asked, answer: Answer, id: str) -> Speech:
        return responses.ResponsesSpeech(model=answer.model or asked.model, id=id, sealed=_sealed(asked))

    def document(
        self, asked: Asked, answer: Answer, id: str, parts: Sequence[Said], stop: str, counts: Counts
    ) -> dict[str, Any]:
        model = answer.model or asked.model
        return responses.response(parts, stop, counts, model=model, id=id, sealed=_sealed(asked))


def _sealed(asked: Asked) -> bool:
    return "reasoning.encrypted_content" in (asked.json.get("include") or [])
