"""Pins: where each agent goes for as long as it lives, whatever the rules say meanwhile.

Pure: times come in. Owns the form in which pins are kept. Source: case 88; an agent that changes its model in mid-work
would lose what it thought, or be refused for what another thought. Invariants: there are never more than `MOST`; a pin
that is used does not expire; a thread that is no agent's has only a trace, which holds it nowhere.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from dbproxy.api import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: Pins that are kept; beyond, those that were not used for longest are forgotten.
MOST: Final = 4096
#: A pin is written down again when its use was noted so long ago (seconds).
_NOTED_EVERY: Final = 600.0
Place = tuple[str, str]  # conversation, thread


@dataclass(frozen=True, slots=True)
class Pin:
    """One thread's way. Without ``targets`` it stays where the client sends it.

    ``foreign`` says that its history may hold what other models thought; ``trace`` that this thread follows the rules
    of the day and merely has been elsewhere. ``model`` is what the agent asks for, if the client's own upstream has no
    such model. Times are Unix seconds.
    """

    conversation: str
    thread: str
    targets: tuple[Target, ...] = ()
    rule: str = ""
    reason: str = ""
    fallback: bool = True
    foreign: bool = False
    trace: bool = False
    model: str = ""
    used: float = 0.0

    @property
    def place(self) -> Place:
        """Conversation and thread."""
        return self.conversation, self.thread

    def to_json(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "conversation": self.conversation,
            "thread": self.thread,
            "targets": [[target.provider, target.model] for target in self.targets],
            "rule": self.rule,
            "reason": self.reason,
            "fallback": self.fallback,
            "foreign": self.foreign,
            "trace": self.trace,
            "model": self.model,
            "used": self.used,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Pin:
        """Raises KeyError, TypeError or ValueError for what is no pin."""
        targets = tuple(Target(str(provider), str(model)) for provider, model in value["targets"])
        return cls(
            str(value["conversation"]),
            str(value["thread"]),
            targets,
            str(value["rule"]),
            str(value["reason"]),
            value["fallback"] is True,
            value["foreign"] is True,
            value["trace"] is True,
            str(value["model"]),
            float(value["used"]),
        )


class Pins:
    """The pins of this process. ``changed`` says that there is something to keep."""

    def __init__(self) -> None:
        self._pins: OrderedDict[Place, Pin] = OrderedDict()
        self._passed: OrderedDict[Place, None] = OrderedDict()
        self.changed = False

    def __len__(self) -> int:
        return len(self._pins)

    def __iter__(self) -> Iterator[Pin]:
        return iter(tuple(self._pins.values()))

    def get(self, place: Place | None, now: float) -> Pin | None:
        """The pin of a thread, which is used now."""
        pin = self._pins.get(place) if place is not None else None
        if pin is None:
            return None
        if now - pin.used > _NOTED_EVERY:
            pin = replace(pin, used=now)
            self.changed = True
        self._pins[pin.place] = pin
        self._pins.move_to_end(pin.place)
        return pin

    def peek(self, place: Place | None) -> Pin | None:
        """The pin of a thread; this is no use of it."""
        return self._pins.get(place) if place is not None else None

    def touches(self, session: str) -> bool:
        """Is any thread of this conversation pinned? Without a name of the conversation: any at all."""
        if not session:
            return bool(self._pins)
        return any(conversation == session for conversation, _ in self._pins)

    def put(self, pin: Pin) -> None:
        """Hold a thread."""
        self._pins[pin.place] = pin
        self._pins.move_to_end(pin.place)
        self._passed.pop(pin.place, None)
        while len(self._pins) > MOST:
            self._pins.popitem(last=False)
        self.changed = True

    def pass_by(self, place: Place) -> None:
        """Remember an agent that no rule concerned when it began: it stays, and is not looked at again."""
        self._passed[place] = None
        while len(self._passed) > MOST:
            self._passed.popitem(last=False)

    def passed(self, place: Place | None) -> bool:
        """Was this agent passed by?"""
        return place in self._passed

    def expire(self, now: float, ttl: float) -> None:
        """Forget what was not used for ``ttl`` seconds."""
        gone = [place for place, pin in self._pins.items() if now - pin.used > ttl]
        for place in gone:
            del self._pins[place]
        self.changed = self.changed or bool(gone)

    def to_json(self) -> dict[str, Any]:
        """All of them as they are kept, those used longest ago first."""
        return {"version": 1, "pins": [pin.to_json() for pin in self._pins.values()]}

    def take(self, kept: Mapping[str, Any], now: float, ttl: float) -> None:
        """Take over what another process, or this one, kept; what is known here stands."""
        for pin in _readable(kept.get("pins")):
            if pin.place not in self._pins and now - pin.used <= ttl:
                self._pins[pin.place] = pin
                self._pins.move_to_end(pin.place, last=False)
        while len(self._pins) > MOST:
            self._pins.popitem(last=False)


def _readable(value: object) -> Iterable[Pin]:
    for item in value if isinstance(value, list) else ():
        try:
            yield Pin.from_json(item)
        except (KeyError, TypeError, ValueError):
            continue
