"""What is remembered between requests: rules as they stand, who can answer, and what was said already."""

from __future__ import annotations

from types import SimpleNamespace

from dbproxy_subagent_routing import book as module
from dbproxy_subagent_routing.book import RuleBook, Standing, refusals


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Provider:
    def __init__(self, not_ready: str = "") -> None:
        self.not_ready, self.asked, self.keyless = not_ready, 0, False

    def unready(self) -> str:
        self.asked += 1
        if self.not_ready == "raise":
            raise OSError
        return self.not_ready


def book() -> SimpleNamespace:
    said: list[tuple[str, str]] = []
    clock = Clock()

    def emit(event: str, *, level: str = "info", **fields: str) -> None:
        assert (event, level) == ("route_refused", "warning")
        said.append((fields["rule"], fields["reason"]))

    return SimpleNamespace(book=RuleBook(emit, clock), said=said, clock=clock)


def test_a_setting_is_read_once():
    b = book().book
    value = {"a": "openai:x"}
    first = b.rules(value, dict)
    assert b.rules(value, dict) is first
    assert b.rules(dict(value), dict) is not first
    assert b.rules(None, dict).rules == ()
    for number in range(200):
        b.rules({str(number): "openai:x"}, dict)
    assert len(b._known) == 64


def test_who_can_answer_is_asked_now_and_then():
    made = book()
    provider = Provider("no key")

    def standing(given: object = None) -> Standing:
        found = made.book.standing(lambda: {"p": provider}, given)
        assert isinstance(found, Standing)
        return found

    assert [standing(), standing()] == [Standing(), Standing()]
    assert provider.asked == 1
    provider.not_ready = ""
    made.clock.now = 1.9
    assert standing() == Standing()
    made.clock.now = 2.1
    assert standing() == Standing(anybody=True, chosen=True)
    provider.keyless = True  # it is there without anybody's having done anything for it
    made.clock.now = 5.0
    assert standing() == Standing(anybody=True)
    made.clock.now = 8.0
    assert standing({"ollama": {}}) == Standing(anybody=True, chosen=True)
    provider.not_ready = "raise"
    made.clock.now = 11.0
    assert standing() == Standing()


def test_a_refusal_is_said_once_until_it_changes():
    made = book()
    openai = Provider("no key")
    providers = {"openai": openai, "gemini": Provider()}
    rules = made.book.rules({"a": "openai:x", "b": "gemini:y"}, lambda: providers)
    assert made.said == [("a = openai:x", "no key")]  # also of a launch's rules, which nobody looks after
    for _ in range(3):
        made.book.announce(rules, providers)
    made.book.rules({"a": "openai:x"}, lambda: providers)
    assert len(made.said) == 1
    openai.not_ready = "the key file is empty"
    made.book.announce(rules, providers)
    openai.not_ready = ""
    made.book.announce(rules, providers)
    assert made.said == [("a = openai:x", "no key"), ("a = openai:x", "the key file is empty")]
    openai.not_ready = "no key"
    made.book.announce(rules, providers)
    assert len(made.said) == 3
    assert refusals(rules, providers) == {"a = openai:x": "no key"}


def test_what_was_said_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_MOST_SAID", 3)
    made = book()
    made.book.rules({str(number): "openai:x" for number in range(9)}, dict)
    assert len(made.said) == 9
    assert len(made.book._said) == 3
