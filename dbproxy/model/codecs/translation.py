"""What one request to another model and its answer share: names, ids, what the client asked for, what was left out.

Values and a few counters; no policy. Invariant: one `Translation` serves one attempt at one request.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dbproxy.model.codecs.capabilities import Capabilities
from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.vault import Vault


@dataclass(slots=True)
class Translation:
    """The context of one attempt.

    ``asked`` is the model that the client asked for, and what its answer says; ``model`` is the upstream's id.
    ``message_id`` is the id of the answer where the upstream gives none, ``family`` whose signatures it can read.
    ``stops`` are stop sequences that must be watched for here, ``single`` lets only the first call of an answer
    through; codecs set both when the upstream cannot. ``scale`` turns the upstream's token counts into the client's
    (its window divided by the upstream's); ``estimate`` is the prompt's size in the upstream's tokens, guessed.
    ``notes`` are short facts for a person: what was left out, clamped or changed, never message text.
    """

    asked: str
    model: str
    message_id: str
    capabilities: Capabilities = field(default_factory=Capabilities)
    family: str = ""
    names: ToolNames = field(default_factory=ToolNames)
    vault: Vault = field(default_factory=Vault)
    stops: tuple[str, ...] = ()
    single: bool = False
    scale: float = 1.0
    estimate: int = 1
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a fact, once."""
        if text not in self.notes:
            self.notes.append(text)
