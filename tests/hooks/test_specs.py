"""Every specification is documented, has a kind, an answer check, a place on the hook page and a test of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dbproxy.errors import PluginError
from dbproxy.exchange import Exchange, Fields, LocalResponse, RequestDraft, RequestHead, ResponseHead
from dbproxy.hooks import document, specs
from dbproxy.hooks.kinds import RULES, Kind
from dbproxy.hooks.routing import Route

HERE = Path(__file__).parent
HEAD = RequestHead(b"POST", b"/", b"HTTP/1.1", Fields.of([]))


@pytest.mark.parametrize("hook", specs.HOOKS.values(), ids=lambda hook: hook.name)
def test_spec_is_complete(hook: specs.Hook) -> None:
    assert len(hook.documentation) > 60
    assert hook.kind in RULES
    assert hook.signature.count("->") == 1
    if hook.awaitable:
        assert hook.deadline is not None
        assert 0 < hook.deadline <= 60
    if hook.kind is Kind.TRANSFORM:
        assert hook.value in hook.arguments


@pytest.mark.parametrize("name", specs.HOOKS)
def test_spec_has_a_test_named_after_it(name: str) -> None:
    tests = "".join(file.read_text() for file in HERE.glob("test_*.py"))
    assert re.search(rf"def test_hook_{name}\b", tests), f"write test_hook_{name}"


def test_every_kind_has_a_rule_and_is_used() -> None:
    assert set(RULES) == set(Kind)
    assert {hook.kind for hook in specs.HOOKS.values()} == set(Kind)


def test_hook_page_is_up_to_date() -> None:
    page = HERE.parent.parent / "docs" / "hooks.md"
    assert page.read_text() == document.render(), "run: python -m dbproxy.hooks.document docs/hooks.md"


def test_hook_page_writes_itself(tmp_path: Path) -> None:
    document.main([str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text()
    for hook in specs.HOOKS.values():
        assert f"\n## {hook.name}\n" in text
        assert hook.documentation.splitlines()[0] in text
    with pytest.raises(SystemExit):
        document.main([])


@pytest.mark.parametrize(
    ("name", "given", "answer"),
    [
        ("startup", None, 1),
        ("services", None, [("a",)]),
        ("services", None, [(1, print)]),
        ("services", None, [("a", 2)]),
        ("services", None, 5),
        ("health", None, ["x"]),
        ("health", None, {"x": object()}),
        ("health", None, {"x": float("nan")}),
        ("metrics", None, [1]),
        ("metrics", None, [specs.Sample("bad name", 1)]),
        ("metrics", None, [specs.Sample("good", 1, {"bad-label": "x"})]),
        ("tunnel_policy", None, "INTERCEPT"),
        ("tunnel_policy", None, True),
        ("wants_body", None, 1),
        ("intercept_request", None, b"hello"),
        ("intercept_request", None, LocalResponse(101, Fields.of([]))),
        ("intercept_request", None, LocalResponse(200, Fields.of([(b"A", b"b\r\nC: d")]))),
        ("intercept_request", None, LocalResponse(200, Fields.of([]), body="text")),  # type: ignore[arg-type]
        ("intercept_request", None, LocalResponse(200, Fields.of([]), stream=b"x")),  # type: ignore[arg-type]
        ("intercept_request", None, LocalResponse(200, [])),  # type: ignore[arg-type]
        ("transform_request", RequestDraft(HEAD, None), HEAD),
        ("transform_request", RequestDraft(HEAD, None), RequestDraft(HEAD, b"body")),
        ("transform_request", RequestDraft(HEAD, b"x"), RequestDraft(HEAD, None)),
        ("transform_request", RequestDraft(HEAD, b"x"), RequestDraft(HEAD, "y")),  # type: ignore[arg-type]
        (
            "transform_request",
            RequestDraft(HEAD, b"x"),
            RequestDraft(RequestHead(b"GET", b"/ HTTP/1.1\r\nA: b", b"HTTP/1.1", Fields.of([])), b"x"),
        ),
        (
            "transform_request",
            RequestDraft(HEAD, b"x"),
            RequestDraft(RequestHead("GET", b"/", b"HTTP/1.1", Fields.of([])), b"x"),  # type: ignore[arg-type]
        ),
        ("transform_response_head", None, ResponseHead(99, b"", b"HTTP/1.1", Fields.of([]))),
        ("transform_response_head", None, ResponseHead(200, b"a\nb", b"HTTP/1.1", Fields.of([]))),
        ("transform_response_head", None, ResponseHead(200, b"", b"HTTP/1.1", Fields([b"x\n: y"], [b"x"], [b"y"]))),
        ("transform_response_head", None, ResponseHead(200, b"", b"HTTP/1.1", Fields(["x: y"], [b"x"], [b"y"]))),  # type: ignore[list-item]
        ("transform_response_head", None, "head"),
        ("stream_filter", None, object()),
        ("stream_tap", None, object()),
        ("exchange_finished", None, 1),
        ("open_storage", None, object()),
        ("redactor", None, "***"),
        ("conversation_reset", None, [1]),
        ("route_request", None, "gpt-4o"),
        ("route_request", None, Route(())),
        ("route_request", None, Route(("openai:gpt-4o",))),  # type: ignore[arg-type]
        ("providers", None, [object()]),
        ("providers", None, ["openai"]),
        ("conversation_reset", None, 1),
    ],
)
def test_wrong_answers_are_refused(name: str, given: object, answer: object) -> None:
    with pytest.raises((PluginError, TypeError, ValueError)):
        specs.HOOKS[name].check(answer, given)


def test_async_filter_is_refused() -> None:
    class Filter:
        async def feed(self, event: object) -> bytes:
            return b""

        def end(self) -> None: ...

    with pytest.raises(PluginError, match="plain functions"):
        specs.HOOKS["stream_filter"].check(Filter(), None)


def test_the_same_draft_passes_unread(exchange: Exchange) -> None:
    draft = RequestDraft(exchange.request, None)
    assert specs.HOOKS["transform_request"].check(draft, draft) is draft
