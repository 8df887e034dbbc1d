"""The servers that need no settings but a key, or not even that: addresses, variables, ways to prove who one is.

Data only. Sources: API facts 5 and its list of native endpoints (as of 2026-11), seed-001 1.5. Invariant: an address
here is a vendor's own, or this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: How a key is shown: ``Authorization: Bearer``, or a field of its own.
BEARER, X_API_KEY, X_GOOG_API_KEY = "bearer", "x-api-key", "x-goog-api-key"

#: What may stand in a table as ``kind``.
OPENAI, GEMINI, ANTHROPIC, MESSAGES, COMPATIBLE = "openai", "gemini", "anthropic", "messages", "compatible"
KINDS: Final = (OPENAI, GEMINI, ANTHROPIC, MESSAGES, COMPATIBLE)


@dataclass(frozen=True, slots=True)
class Server:
    """``base`` is where its own dialect is spoken, ``chat`` where it speaks like OpenAI, "" where that is the same.

    ``keys`` are the variables that usually hold its key, ``base_variable`` the one that may hold another address.
    ``section`` is its part of the table of capabilities. Without ``needs_key`` it answers without one.
    """

    kind: str
    base: str
    chat: str = ""
    keys: tuple[str, ...] = ()
    base_variable: str = ""
    auth: str = BEARER
    needs_key: bool = True
    section: str = ""

    def usual_base(self, kind: str) -> str:
        """Its address for requests of this kind, "" if it has none."""
        if kind == self.kind:
            return self.base
        return (self.chat or self.base) if kind in (OPENAI, COMPATIBLE) and self.kind != ANTHROPIC else ""

    def auth_for(self, kind: str) -> str:
        """How a key is shown in requests of this kind."""
        return self.auth if kind == self.kind else BEARER


SERVERS: Final = {
    "openai": Server(
        OPENAI, "https://api.openai.com/v1", keys=("OPENAI_API_KEY",), base_variable="OPENAI_BASE_URL", section="openai"
    ),
    "gemini": Server(
        GEMINI,
        "https://generativelanguage.googleapis.com/v1beta",
        chat="https://generativelanguage.googleapis.com/v1beta/openai",
        keys=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        auth=X_GOOG_API_KEY,
        section="gemini",
    ),
    # No variable: ANTHROPIC_API_KEY is the client's own, and its upstream is where that one belongs.
    "anthropic": Server(ANTHROPIC, "https://api.anthropic.com", auth=X_API_KEY, section="anthropic"),
    "ollama": Server(
        MESSAGES, "http://localhost:11434", chat="http://localhost:11434/v1", needs_key=False, section="ollama"
    ),
    "ollama-cloud": Server(MESSAGES, "https://ollama.com", keys=("OLLAMA_API_KEY",), section="ollama"),
    "lmstudio": Server(
        MESSAGES, "http://localhost:1234", chat="http://localhost:1234/v1", needs_key=False, section="lmstudio"
    ),
    "llama.cpp": Server(MESSAGES, "http://localhost:8080", needs_key=False, section="llama.cpp"),
    "vllm": Server(MESSAGES, "http://localhost:8000", chat="http://localhost:8000/v1", needs_key=False, section="vllm"),
    "openrouter": Server(
        MESSAGES,
        "https://openrouter.ai/api",
        chat="https://openrouter.ai/api/v1",
        keys=("OPENROUTER_API_KEY",),
        section="openrouter",
    ),
    "deepseek": Server(
        MESSAGES,
        "https://api.deepseek.com/anthropic",
        chat="https://api.deepseek.com/v1",
        keys=("DEEPSEEK_API_KEY",),
        auth=X_API_KEY,
        section="deepseek",
    ),
    "moonshot": Server(
        MESSAGES,
        "https://api.moonshot.ai/anthropic",
        chat="https://api.moonshot.ai/v1",
        keys=("MOONSHOT_API_KEY",),
        section="moonshot",
    ),
    "zai": Server(
        MESSAGES,
        "https://api.z.ai/api/anthropic",
        chat="https://api.z.ai/api/paas/v4",
        keys=("ZAI_API_KEY",),
        section="zai",
    ),
    "minimax": Server(
        MESSAGES,
        "https://api.minimax.io/anthropic",
        chat="https://api.minimax.io/v1",
        keys=("MINIMAX_API_KEY",),
        section="minimax",
    ),
}

#: What holds for a name that is not among them, by its kind.
OTHERS: Final = {
    OPENAI: SERVERS["openai"],
    GEMINI: SERVERS["gemini"],
    ANTHROPIC: SERVERS["anthropic"],
    MESSAGES: Server(MESSAGES, "", needs_key=False, section="messages"),
    COMPATIBLE: Server(COMPATIBLE, "", needs_key=False, section="compatible"),
}
