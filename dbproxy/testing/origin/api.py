"""The built-in rules: what the Messages API and its neighbours on api.anthropic.com answer when no script says else.

Pure decisions over a request and this object's small state (threads); no I/O. Every rule names the fact that it
imitates, and ``NEVER_SEEN_LIVE`` lists what rests on documents or reports alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dbproxy.errors import ConfigError
from dbproxy.testing.origin import events
from dbproxy.testing.origin.prompt_cache import PromptCache
from dbproxy.testing.origin.scenarios import SCENARIOS
from dbproxy.testing.origin.script import Answer, Script, document, fail, script_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbproxy.testing.origin.received import Received
    from dbproxy.testing.origin.scenarios import Scenario

THREAD_SECONDS = 300.0  # anthropic-api 2.6: five minutes after the last request
MODELS = (
    ("claude-opus-5-5", "Claude Opus 5.5", "2026-09-22T00:00:00Z", 1_000_000, 128_000),
    ("claude-sonnet-5-5", "Claude Sonnet 5.5", "2026-09-28T00:00:00Z", 1_000_000, 128_000),
    ("claude-haiku-4-5", "Claude Haiku 4.5", "2025-10-01T00:00:00Z", 200_000, 64_000),
)

NEVER_SEEN_LIVE = (
    ("threads: create, continue and their errors", "anthropic-api 2.6; client facts 9"),
    ("gzip and zstd request bodies towards the real API", "anthropic-api 6.3; client facts 9"),
    ("cadence of ping events", "anthropic-api 1.6, 6.4"),
    ("exact values of rate-limit fields", "anthropic-api 1.8"),
    ("limits of request size and the order of checks", "anthropic-api 6.2"),
    ("on-demand and threshold compaction blocks", "anthropic-api 2.1, 2.2"),
    ("WebSocket paths", "anthropic-api 4.5"),
    ("prompt cache: betas as part of its key, attribution outside of it, threads", "anthropic-api 2.5, 2.6, 2.7"),
    ("prompt cache: the smallest prefix of the 5.5 family", "anthropic-api 2.5"),
)


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """One built-in rule."""

    name: str
    source: str
    says: str
    answer: Callable[[Api, Received], Answer | None]


@dataclass(slots=True)
class _Thread:
    fingerprint: str
    history: list[dict[str, Any]]
    opening: dict[str, Any]
    last_used: float
    continued: bool = False


class Api:
    """State of one fake API: its script, how often each rule answered, and the threads it can continue.

    ``given`` is anything that `script_from` takes. Raises ConfigError for a scenario that does not exist.
    """

    scenarios: ClassVar[Mapping[str, Scenario]] = SCENARIOS

    def __init__(self, given: Any = None) -> None:
        script = self.script = self._checked(given)
        self._used: dict[int, int] = {}
        self._passed: dict[int, int] = {}
        self._threads: dict[str, _Thread] = {}
        self.scenario_state: dict[str, Any] = {}
        self.prompt_cache = _cache_of(script)

    def _checked(self, given: Any) -> Script:
        script = script_from(given)
        if script.scenario not in self.scenarios:
            raise ConfigError(f"no scenario {script.scenario!r}", hint=f"use one of {', '.join(self.scenarios)}")
        return script

    def replace(self, given: Any) -> None:
        """Go on with another script from now."""
        script = self._checked(given)
        if (script.cache, script.scenario) != (self.script.cache, self.script.scenario):
            self.prompt_cache = _cache_of(script)
        self.script = script
        self._used.clear()
        self._passed.clear()
        self.scenario_state.clear()

    def early(self, request: Received) -> Answer | None:
        """The answer that is chosen by the head alone: for ``early`` and ``read_delay``."""
        for number, rule in enumerate(self.script.rules):
            special = any(answer.early or answer.read_delay for answer in rule.answers)
            if not special or rule.match.needs_body or not rule.match.holds(request, with_body=False):
                continue
            answer = self._pick(number, peek=True)
            if answer is not None and answer.early:
                return self._pick(number)
            if answer is not None:
                return answer  # only its read_delay counts; the rule is asked again with the body
        return None

    def answer(self, request: Received) -> Answer:
        """The answer to a request whose body is there."""
        chosen = self.script.decide(request) if self.script.decide is not None else None
        if chosen is None:
            chosen = self.ruled(request)
        if chosen is None:
            for rule in BUILT_IN:
                chosen = rule.answer(self, request)
                if chosen is not None:
                    break
        assert chosen is not None  # the last built-in rule answers everything
        return self._with_thread(request, self._with_cache(request, chosen))

    def _with_cache(self, request: Received, answer: Answer) -> Answer:
        """With the cache's counts, where the script says none (anthropic-api 2.5)."""
        if self.prompt_cache is None or not request.is_messages or answer.blocks is None or answer.status != 200:
            return answer
        share = self.prompt_cache.pay(request, request.time)
        return answer.but(usage={**share.usage(), **(answer.usage or {})})

    def ruled(self, request: Received) -> Answer | None:
        """What the first rule of the script says that matches and still answers."""
        for number, rule in enumerate(self.script.rules):
            if rule.match.holds(request):
                answer = self._pick(number)
                if answer is not None:
                    return answer
        return None

    def _pick(self, number: int, *, peek: bool = False) -> Answer | None:
        rule = self.script.rules[number]
        passed, used = self._passed.get(number, 0), self._used.get(number, 0)
        if passed < rule.skip:
            if not peek:
                self._passed[number] = passed + 1
            return None
        if rule.times is not None and used >= rule.times:
            return None
        if not peek:
            self._used[number] = used + 1
        return rule.answers[min(used, len(rule.answers) - 1)]

    # Threads (anthropic-api 2.6)

    def _with_thread(self, request: Received, answer: Answer) -> Answer:
        """Remember the conversation under the id of an answer to a thread request, so that it can be continued."""
        if not request.is_messages or not isinstance(request.json.get("thread"), dict) or answer.blocks is None:
            return answer
        if answer.status != 200:
            return answer
        message_id = answer.message_id or events.new_message_id()
        reply = {"role": "assistant", "content": list(answer.blocks)}
        own = list(request.json.get("messages") or [])
        self._threads[message_id] = _Thread(
            fingerprint(request),
            [*(request.history or []), *own, reply],
            request.opening or request.json,
            last_used=request.time,
        )
        return answer.but(message_id=message_id)

    def continue_thread(self, request: Received) -> Answer | None:
        """The error for a bad continue request; else puts the history into ``request`` and returns None."""
        thread = request.json.get("thread")
        if thread is None:
            return None
        if not isinstance(thread, dict) or thread.get("type") not in ("create", "continue"):
            return _thread_error(400, "thread_unsupported_request", "thread: unknown type")
        if thread["type"] == "create":
            return None
        known = self._threads.get(str(thread.get("previous_message_id")))
        if known is None or request.time - known.last_used > THREAD_SECONDS:
            return _thread_error(404, "thread_not_found", "thread not found")
        if known.continued:
            return _thread_error(400, "thread_already_continued", "this response was continued already")
        if known.fingerprint != fingerprint(request):
            return _thread_error(400, "thread_fingerprint_mismatch", "model or output_config changed within a thread")
        known.continued = True
        request.history, request.opening = known.history, known.opening
        return None


def _cache_of(script: Script) -> PromptCache | None:
    scenario = SCENARIOS.get(script.scenario)
    wanted = script.cache or (scenario.cache if scenario is not None else False)
    if not wanted:
        return None
    return PromptCache() if wanted is True else PromptCache(wanted)


def fingerprint(request: Received) -> str:
    """What must not change within a thread; tools are left out, since a continue request has none."""
    return json.dumps([request.model, request.json.get("output_config"), request.json.get("thinking")], sort_keys=True)


def _thread_error(status: int, code: str, message: str) -> Answer:
    return fail(status, message, details={"error_code": code})


def _invalid(request: Received) -> str:
    """Why the body is not a Messages request, or nothing (anthropic-api 1.2)."""
    try:
        body = json.loads(request.decoded)
    except Exception as error:  # whatever a decoder says about a body: it is a 400, as with the API
        return f"The request body is not valid JSON: {error}"
    if not isinstance(body, dict):
        return "The request body must be an object"
    if not isinstance(body.get("model"), str) or not body["model"]:
        return "model: Field required"
    if not isinstance(body.get("messages"), list):
        return "messages: Field required"
    if request.path.endswith("/count_tokens"):
        return ""
    if not isinstance(body.get("max_tokens"), int):
        return "max_tokens: Field required"
    if not body["messages"]:
        return "messages: at least one message is required"
    return ""


def _messages_errors(api: Api, request: Received) -> Answer | None:
    if not request.is_messages and not (
        request.method == "POST" and request.path.endswith("/v1/messages/count_tokens")
    ):
        return None
    if request.header("x-api-key") is None and request.header("authorization") is None:
        return fail(401, "x-api-key header is required")
    if request.header("anthropic-version") is None:
        return fail(400, "anthropic-version: header is required")
    problem = _invalid(request)
    return fail(400, problem) if problem else None


def _threads(api: Api, request: Received) -> Answer | None:
    return api.continue_thread(request) if request.is_messages else None


def _cache_marks(api: Api, request: Received) -> Answer | None:
    problem = api.prompt_cache.problem(request) if api.prompt_cache is not None and request.is_messages else ""
    return fail(400, problem) if problem else None


def _scenario(api: Api, request: Received) -> Answer | None:
    if not request.is_messages:
        return None
    scenario = SCENARIOS[api.script.scenario]
    return scenario.answer(request, api.scenario_state, api.script.options)


def _count_tokens(api: Api, request: Received) -> Answer | None:
    if request.method == "POST" and request.path.endswith("/v1/messages/count_tokens"):
        return document({"input_tokens": max(1, len(request.decoded) // 4)})
    return None


def _cache_touch(api: Api, request: Received) -> Answer | None:
    if request.method == "POST" and request.path.endswith("/v1/messages/cache_touch"):
        return document({"type": "cache_touch", "status": "ok"})
    return None


def _models(api: Api, request: Received) -> Answer | None:
    if request.method != "GET" or "/v1/models" not in request.path:
        return None
    listed = [
        {
            "type": "model",
            "id": name,
            "display_name": title,
            "created_at": created,
            "lifecycle": "active",
            "max_input_tokens": window,
            "max_tokens": output,
        }
        for name, title, created, window, output in MODELS
    ]
    if request.path.endswith("/v1/models"):
        return document({"data": listed, "has_more": False, "first_id": listed[0]["id"], "last_id": listed[-1]["id"]})
    wanted = request.path.rsplit("/", 1)[1]
    for model in listed:
        if model["id"] == wanted:
            return document(model)
    return fail(404, f"model: {wanted}")


def _probe(api: Api, request: Received) -> Answer | None:
    if request.path == "/api/hello" and request.method in ("GET", "HEAD"):
        return document({"message": "hello"})
    if request.path == "/" and request.method in ("GET", "HEAD"):
        return document({"ok": True})
    return None


def _settings(api: Api, request: Received) -> Answer | None:
    if request.path.startswith("/api/claude_code/") and request.method == "GET":
        return fail(404, "Not found")
    return None


def _telemetry(api: Api, request: Received) -> Answer | None:
    if request.method == "POST" and request.path.startswith(("/api/event_logging/", "/api/claude_code/metrics")):
        return document({"accepted_count": 1, "rejected_count": 0})
    return None


def _web_socket(api: Api, request: Received) -> Answer | None:
    if request.path.startswith("/api/ws/") and (request.header("upgrade") or "").lower() == "websocket":
        return Answer(upgrade="websocket")
    return None


def _not_found(api: Api, request: Received) -> Answer | None:
    return fail(404, "Not found")


BUILT_IN = (
    BuiltIn("errors", "anthropic-api 1.1, 1.2, 1.7", "401, 400 for a request that is not one", _messages_errors),
    BuiltIn("threads", "anthropic-api 2.6", "create, continue, and the thread_* errors", _threads),
    BuiltIn("cache marks", "anthropic-api 2.5, 2.6", "400 for too many marks, or in a wrong order", _cache_marks),
    BuiltIn("scenario", "anthropic-api 1.4, 1.6; client facts 3, 4", "a message, streamed or whole", _scenario),
    BuiltIn("count_tokens", "anthropic-api 1.9", "an estimate: four bytes a token", _count_tokens),
    BuiltIn("cache_touch", "anthropic-api 2.8", "a child of /v1/messages that is no message", _cache_touch),
    BuiltIn("models", "anthropic-api 1.9", "list and single model", _models),
    BuiltIn("probe", "client facts 2; anthropic-api 1.1", "HEAD / and /api/hello at once", _probe),
    BuiltIn("settings", "client facts 5, 0.9", "404 at once: a hang delays the first message by 31 s", _settings),
    BuiltIn("telemetry", "client facts 1.5", "takes and forgets", _telemetry),
    BuiltIn("web socket", "anthropic-api 4.5", "101, then an echo", _web_socket),
    BuiltIn("not found", "anthropic-api 1.7", "404 in the API's error shape", _not_found),
)
