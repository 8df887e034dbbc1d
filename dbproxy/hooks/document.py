"""The generated hook page, ``docs/hooks.md``.

Write it with ``python -m dbproxy.hooks.document docs/hooks.md``; a test compares. Imports the specifications only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dbproxy.hooks.kinds import QUARANTINE_AFTER, RULES, SLOW_CALL
from dbproxy.hooks.specs import API_VERSION, HOOKS, PROJECT, Hook

_INTRODUCTION = f"""\
# Hooks

<!-- Generated from dbproxy/hooks/specs.py by: python -m dbproxy.hooks.document docs/hooks.md -->

A plugin is a module, or a class without constructor arguments, with functions marked `@hookimpl` that are named after a
hook and take any of its arguments, by name. It imports `dbproxy.api` and nothing else of dbproxy, and is found

1. as an installed distribution with an entry point in the group `{PROJECT}`,
2. as a distribution in the plugin directory of the data folder,
3. as a single `.py` file in the plugin directory (names that start with `_` are left out).

```python
from dbproxy.api import Exchange, hookimpl

dbproxy_api = {API_VERSION}  # the interface it was written for; may be left out


@hookimpl
def exchange_finished(exchange: Exchange) -> None:
    ...
```

Where the table says so, `async def` works as well as `def`. A plain function must not block: it runs on the event loop,
and one that takes more than {round(SLOW_CALL * 1000)} ms is counted as slow in `/health`. Implementations are called
latest registration first; `@hookimpl(tryfirst=True)` and `trylast=True` change that. Hook wrappers are not supported.

What a plugin does wrong stays with it: an exception, a passed deadline or an answer of the wrong type is counted and
taken for no answer. {QUARANTINE_AFTER} failures of one hook in a row put the plugin into quarantine: none of its hooks
but `shutdown` is called until it is reinstated. Health names the exception and its place, never its text. Code that
blocks the event loop for good cannot be contained inside the process.

Each plugin may keep what it learns about a request in `exchange.attributes` under its own name.

## Kinds

| kind | deadline | `async def` | |
|---|---|---|---|
"""


def render() -> str:
    """The whole page."""
    kinds = "".join(
        f"| {kind.value} | {_seconds(rule.deadline)} | {'yes' if rule.awaitable else 'no'} | {rule.summary} |\n"
        for kind, rule in RULES.items()
    )
    rows = "".join(
        f"| [{hook.name}](#{hook.name}) | {hook.kind.value} | {_seconds(hook.deadline)} "
        f"| {'yes' if hook.awaitable else 'no'} | {_first_sentence(hook)} |\n"
        for hook in HOOKS.values()
    )
    table = f"\n## All hooks\n\n| hook | kind | deadline | `async def` | |\n|---|---|---|---|---|\n{rows}"
    return _INTRODUCTION + kinds + table + "".join(_section(hook) for hook in HOOKS.values())


def _section(hook: Hook) -> str:
    return (
        f"\n## {hook.name}\n\n```python\ndef {hook.name}{hook.signature}\n```\n\n"
        f"Kind: {hook.kind.value}. Deadline: {_seconds(hook.deadline)}. "
        f"{'`def` or `async def`' if hook.awaitable else '`def` only'}.\n\n{hook.documentation}\n"
    )


def _first_sentence(hook: Hook) -> str:
    return hook.documentation.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".").replace("|", "\\|")


def _seconds(deadline: float | None) -> str:
    return "none" if deadline is None else f"{deadline:g} s"


def main(arguments: list[str]) -> None:
    """Write the page to the path given."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m dbproxy.hooks.document PATH")
    Path(arguments[0]).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
