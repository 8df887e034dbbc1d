"""A Messages request for another model that is asked in Messages.

Owns what goes to Claude: the client's own body with the model's id, without what other models thought, and fitted to
what the model takes where its row in the capability table differs from what the client asked of the other. What goes
to everybody else is ``foreign``'s. Pure. Sources: API facts 1.2, 2.4 and 5.5, seed-001 section 3.

Invariants: Claude gets the array of the system prompt, and every key that nobody here knows, as they came (cases 2 and
29); what is changed beyond the model's id and foreign thinking stands in a note.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs import effort
from dbproxy.model.codecs.native.common import budget_of, spoken_by_user
from dbproxy.model.codecs.native.foreign import foreign_body
from dbproxy.model.codecs.request import Unroutable
from dbproxy.model.codecs.thinking import CLAUDE, without_foreign_thinking, without_thinking

if TYPE_CHECKING:
    from dbproxy.model.codecs.request import Request
    from dbproxy.model.codecs.translation import Translation

_SAMPLING: Final = ("temperature", "top_p", "top_k", "speed")


def written_request(request: Request, translation: Translation) -> bytes:
    """The body. Raises Unroutable."""
    if translation.family == CLAUDE:
        body = claude_body(request, translation)
    else:
        body = foreign_body(request, translation)
    found = shapes.written(body)
    if not found:
        raise Unroutable("the request nests too deeply")
    return found


def claude_body(request: Request, translation: Translation) -> dict[str, Any]:
    """The client's body for another Claude. What need not change in it, down to single messages, is the same object as
    in ``request.raw``. Raises Unroutable."""
    return _Fitting(request, translation).body()


class _Fitting:
    """The client's body, made to fit another Claude."""

    def __init__(self, request: Request, translation: Translation) -> None:
        self.request = request
        self.translation = translation
        self.can = translation.capabilities
        self.values: dict[str, Any] = {**request.raw, "model": translation.model}

    def body(self) -> dict[str, Any]:
        if "prefill" in self.request.features and "prefill" in self.can.refuses:
            raise Unroutable("an answer that is begun already")
        self._length()
        self._sampling()
        self._effort()
        self._thinking()
        if "system_messages" in self.can.refuses:
            self._system_messages()
        return without_foreign_thinking(self.values, everything=False) or self.values

    def _length(self) -> None:
        asked = self.request.max_tokens
        if asked is not None and self.can.output and asked > self.can.output:
            self.values["max_tokens"] = self.can.output
            self.translation.note(f"max_tokens was {asked}, and is {self.can.output} for this model")

    def _sampling(self) -> None:
        for name in _SAMPLING:
            if name in self.can.refuses and self.values.pop(name, None) is not None:
                self.translation.note(f"{name} was left out: the model refuses it")
        choice = self.request.choice
        if choice is not None and choice.mode in ("any", "tool") and "forced_tool_choice" in self.can.refuses:
            kept = {"disable_parallel_tool_use": True} if choice.single else {}
            self.values["tool_choice"] = {"type": "auto", **kept}
            self.translation.note("tool_choice became auto: the model cannot be made to call a tool")

    def _effort(self) -> None:
        config = shapes.mapping(self.values.get("output_config"))
        asked = shapes.text(config.get("effort"))
        words = [known for known in self.can.efforts if known != "none"]
        if shapes.mapping(self.values.get("thinking")).get("type") == "disabled" and "none" in self.can.efforts:
            # Without thinking no more than high is taken (platform docs, migration to Opus 5).
            words = [known for known in words if known not in ("xhigh", "max")]
        if not asked or not self.can.efforts or asked in words:
            return
        word = effort.nearest(asked, words)
        self.translation.note(f"effort {asked} became {word or 'what the model does by itself'}")
        rest = {name: value for name, value in config.items() if name != "effort"}
        if word:
            rest["effort"] = word
        if rest:
            self.values["output_config"] = rest
        else:
            del self.values["output_config"]

    def _thinking(self) -> None:
        """Budgets for the models that know nothing else, and none for those that refuse them."""
        thinking = shapes.mapping(self.values.get("thinking"))
        kind, wanted = thinking.get("type"), self.can.thinking
        if kind == "disabled" and self.can.efforts and "none" not in self.can.efforts:
            self.values = without_thinking(self.values)
            self.translation.note("thinking stayed on: the model cannot be told to do without")
        elif kind == "enabled" and wanted == "adaptive":
            kept = {name: value for name, value in thinking.items() if name != "budget_tokens"}
            self.values["thinking"] = {**kept, "type": "adaptive"}
            word = effort.nearest(self.request.effort, self.can.efforts)
            if word and word != "none":
                self.values["output_config"] = {"effort": word, **shapes.mapping(self.values.get("output_config"))}
            self.translation.note("thinking became adaptive: the model takes no budget")
        elif kind in ("adaptive", "between_tools") and wanted == "enabled":
            budget = budget_of(self.request, shapes.count(self.values.get("max_tokens")))
            if budget:
                self.values["thinking"] = {"type": "enabled", "budget_tokens": budget}
                self.translation.note(f"thinking got a budget of {budget} tokens: the model is told no other way")
            else:
                self.values = without_thinking(self.values)
                self.translation.note("thinking was left out: max_tokens leaves no room for it")

    def _system_messages(self) -> None:
        messages = shapes.sequence(self.values.get("messages"))
        if any(shapes.mapping(message).get("role") == "system" for message in messages):
            self.values["messages"] = spoken_by_user(messages)
            self.translation.note("system messages in mid-conversation became the user's: the model refuses them")
