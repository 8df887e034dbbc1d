"""Signatures of what a model thought, as the fake servers give them and take them back.

Pure functions. A real server looks into its own in the same way: a signature of anybody else's is refused, so that a
codec that passes one on is found out.
"""

from __future__ import annotations

import base64
from typing import Final

#: How the ciphertext of an OpenAI reasoning item begins (seed-001 3.3); Claude's and Gemini's begin otherwise.
SEALED: Final = "gAAAA"
#: What Gemini takes in place of a signature that the client does not have (page "Thought signatures").
SENTINELS: Final = ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go")
_OURS: Final = b"fake gemini:"


def thought_signature(text: str) -> str:
    """A signature of the fake Gemini's."""
    return base64.b64encode(_OURS + text.encode()).decode()


def is_thought_signature(value: str) -> bool:
    """Did the fake Gemini give it?"""
    try:
        return base64.b64decode(value, validate=True).startswith(_OURS)
    except ValueError:
        return False
