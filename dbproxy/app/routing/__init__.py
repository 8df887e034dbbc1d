"""Requests that another model answers: who could (`registry`), what becomes of a route (`routed`), one attempt
(`provider_call`), the way back to the client (`delivery`), in its measure (`client_window`); and the same without
sending anything (`rehearsal`).

Must never know rules: those come in as a `Route`, from a plugin.
"""

from __future__ import annotations
