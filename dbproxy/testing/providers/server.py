"""The fake providers as servers: `open_openai`, `open_gemini` and `open_anybody`.

Owns `ProviderApi`, which decides what an API answers. Sockets, framing, pace, recording and scripts are
``dbproxy.testing.origin``'s; a script is the same file for all of them.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from dbproxy.testing.origin.api import Api
from dbproxy.testing.origin.script import Answer, Script, document, script_from
from dbproxy.testing.origin.server import open_origin
from dbproxy.testing.providers.anybody import Anybody
from dbproxy.testing.providers.endpoint import body_of, refusal, spelled, with_field
from dbproxy.testing.providers.gemini_api import Gemini
from dbproxy.testing.providers.objections import Objection
from dbproxy.testing.providers.openai import Chat, Responses
from dbproxy.testing.providers.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from dbproxy.testing.codecs.dialect import Dialect
    from dbproxy.testing.origin.received import Received
    from dbproxy.testing.origin.scenarios import Scenario
    from dbproxy.testing.origin.server import Origin
    from dbproxy.testing.providers.endpoint import Endpoint

#: The keys that the fake servers take, unless told otherwise.
OPENAI_KEY = "fake-openai-key"
GEMINI_KEY = "fake-gemini-key"


class ProviderApi(Api):
    """One provider: its endpoints, and the key that it wants. ``refused`` counts what broke its rules.

    A script's option ``context`` is the model's window: a longer prompt (four bytes a token) is refused.
    """

    scenarios: ClassVar[Mapping[str, Scenario]] = SCENARIOS

    def __init__(self, given: Any, endpoints: Sequence[Endpoint], key: str) -> None:
        super().__init__(given)
        self.endpoints = endpoints
        self.key = key
        self.refused: list[str] = []

    def _checked(self, given: Any) -> Script:
        # One answer for everything: the Messages API's path, which is meant there, is none of this API's.
        return Script(decide=lambda _: given) if isinstance(given, Answer) else super()._checked(given)

    def early(self, request: Received) -> Answer | None:
        answer, endpoint = super().early(request), self._endpoint(request)
        if answer is None or endpoint is None or answer.fault is None:
            return answer
        return refusal(endpoint, answer).but(identified=False)

    def answer(self, request: Received) -> Answer:
        answer = self._answer(request).but(identified=False)
        return with_field(answer, "x-request-id", f"req_{request.number:06d}")

    def _endpoint(self, request: Received) -> Endpoint | None:
        return next((one for one in self.endpoints if one.takes(request)), None)

    def _answer(self, request: Received) -> Answer:
        endpoint = self._endpoint(request)
        if endpoint is None:
            return self._other(request)
        try:
            endpoint.authorise(request, self.key)
            asked = endpoint.read(request, body_of(request))
            limit = int(self.script.options.get("context", 0))
            if limit and len(request.decoded) // 4 > limit:
                raise endpoint.overflow(len(request.decoded) // 4, limit)
        except Objection as objection:
            self.refused.append(objection.message)
            return refusal(endpoint, Answer(), objection)
        chosen = self.script.decide(asked) if self.script.decide is not None else None
        if chosen is None:
            chosen = self.ruled(asked)
        if chosen is None:
            scenario = self.scenarios[self.script.scenario]
            chosen = scenario.answer(asked, self.scenario_state, self.script.options)
        return spelled(endpoint, asked, chosen)

    def _other(self, request: Received) -> Answer:
        if request.method == "GET" and request.path.endswith("/models"):
            return document({"object": "list", "data": [], "models": []})
        return refusal(
            self.endpoints[0], Answer(), Objection(f"Invalid URL ({request.method} {request.path})", status=404)
        )


@asynccontextmanager
async def open_provider(script: Any, endpoints: Sequence[Endpoint], key: str, **how: Any) -> AsyncIterator[Origin]:
    """Run a provider with these endpoints on loopback; ``how`` is what `open_origin` takes."""
    async with open_origin(script, make=lambda given: ProviderApi(given, endpoints, key), **how) as origin:
        yield origin


@asynccontextmanager
async def open_openai(
    script: Any = None, *, key: str = OPENAI_KEY, prefix: str = "", models: Sequence[str] | None = None, **how: Any
) -> AsyncIterator[Origin]:
    """Run a fake OpenAI API: Chat Completions and Responses under ``prefix``/v1.

    ``models`` are patterns of the models that exist, OpenAI's own by default; ``how`` is what `open_origin` takes.
    """
    known = {"models": models} if models is not None else {}
    endpoints = (Chat(prefix=prefix, **known), Responses(prefix=prefix, **known))
    async with open_provider(script, endpoints, key, **how) as origin:
        yield origin


@asynccontextmanager
async def open_gemini(
    script: Any = None, *, key: str = GEMINI_KEY, prefix: str = "", models: Sequence[str] | None = None, **how: Any
) -> AsyncIterator[Origin]:
    """Run a fake Gemini API: generateContent under ``prefix``/v1beta. Arguments as in `open_openai`."""
    known = {"models": models} if models is not None else {}
    async with open_provider(script, (Gemini(prefix=prefix, **known),), key, **how) as origin:
        yield origin


@asynccontextmanager
async def open_anybody(
    dialect: Dialect, path: str, script: Any = None, *, field: str = "", key: str = "", **how: Any
) -> AsyncIterator[Origin]:
    """Run a fake server of any dialect: answers to POST ``path``, if the header ``field`` holds ``key``."""
    async with open_provider(script, (Anybody(dialect, path, field=field),), key, **how) as origin:
        yield origin


def scripts_from(given: Any) -> tuple[Any, Any]:
    """(OpenAI's script, Gemini's): the keys ``openai`` and ``gemini`` of a JSON object, else the same for both."""
    if isinstance(given, dict) and set(given) <= {"openai", "gemini"} and given:
        return given.get("openai"), given.get("gemini")
    script_from(given)
    return given, given
