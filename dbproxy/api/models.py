"""Models by their names, for plugins that decide before anything is translated: who serves one, and what it can do.

Re-exports only, also to be had from ``dbproxy.api.codecs``; this takes a tenth of the time to load, which counts at the
start. Invariant: ``__all__`` is the whole surface, pinned by a test.
"""

from __future__ import annotations

from dbproxy.model.codecs.capabilities import Capabilities, capabilities
from dbproxy.model.codecs.targets import bare_model, parse_target

__all__ = ["Capabilities", "bare_model", "capabilities", "parse_target"]
