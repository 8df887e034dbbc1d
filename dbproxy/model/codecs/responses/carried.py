"""What a model's next request must bring back though the Messages API has no word for it, and how it travels.

Owns two forms: a reasoning item (its id and its encrypted content), inside a signature or in the vault by the id of the
call that followed it; and the phase of a message (a remark on the way, or the final answer), in the vault by its text.
Pure. Invariant: what cannot be read is nothing, never an error.

Sources: the API keeps no items for ``store: false``, so that an item is only as good as its encrypted content (maximhq
bifrost#5410, vercel/ai#7543), and needs its id (agent-framework-go PR#784); a remark that comes back without its phase
is taken for the answer, and the model stops early (openai types, ``EasyInputMessageParam.phase``; pydantic-ai PR#5229).
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal, TypeAlias

from dbproxy.model.codecs.vault import Kept

Phase: TypeAlias = Literal["commentary", "final_answer"]
PHASES: Final[tuple[Phase, ...]] = ("commentary", "final_answer")
_MARK: Final = ":"


def join_reasoning(id: str, encrypted: str) -> str:
    """A reasoning item as the payload of a signature."""
    return f"{id}{_MARK}{encrypted}"


def split_reasoning(payload: str) -> tuple[str, str]:
    """(id, encrypted content) of a payload; ("", "") for what is none."""
    id, _, encrypted = payload.partition(_MARK)
    return (id, encrypted) if id and encrypted else ("", "")


def phase_key(text: str) -> str:
    """Where the vault keeps the phase of a message with this text."""
    return "phase:" + hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()[:32]


def kept_phase(family: str, phase: Phase) -> Kept:
    """A phase as the vault keeps it."""
    return Kept(family, phase)


def phase_of(kept: Kept | None) -> Phase | None:
    """The phase back; None if none is known."""
    return next((phase for phase in PHASES if kept is not None and kept.payload == phase), None)
