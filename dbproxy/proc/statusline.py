"""The status line script, and its place in the client's user settings.

Owns the text of the script and the edits of ``settings.json``: pure functions over text, plus one atomic write that
keeps mode and symbolic links. Must never import trio. Invariants: only the value of ``statusLine`` changes, every other
byte of the file stays; installing twice changes nothing; removing restores what was there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_VARIABLE = "dbproxy_beside="

_SCRIPT = r"""#!/bin/sh
# Claude Code's status line: says ON when the proxy has seen this very session, prints nothing of its own otherwise.
# $1, if given, is the status line command that was there before: it runs first, with the same standard input.
# What it reads is described in dbproxy/app/sessions.py; words that it does not know, or that look odd, it leaves out.
run={run}
input=$(cat)
before=
if [ -n "${{1-}}" ]; then
  before=$(printf '%s\n' "$input" | sh -c "$1")
fi
mark=
field() {{ sed -n "s/.*\"$1\"[[:space:]]*:[[:space:]]*\"\{{0,1\}}\([A-Za-z0-9_-]\{{1,\}}\).*/\1/p" | head -n 1; }}
whole() {{ case $1 in '' | *[!0-9]* | 0?* | ?????????????*) return 1 ;; esac; }}
# When a moment comes, in this machine's time; first BSD's way of saying it, then GNU's (an old BSD misreads that one).
moment() {{ LC_ALL=C date -r "$1" "$2" 2>/dev/null || LC_ALL=C date -d "@$1" "$2" 2>/dev/null; }}
# A window of the account: its name, how to write its end, percent used, Unix time of its end, status.
# When the end is past, the window has begun anew, and nothing is known of the new one.
window() {{
  end=
  whole "$3" || return 0
  if whole "$4" && [ "$4" -gt 0 ]; then
    [ "$4" -gt "$now" ] || return 0
    end=$(moment "$4" "$2")
  fi
  mark="$mark · $1 $3%"
  case $5 in '' | allowed) ;; *) mark="$mark!" ;; esac
  [ -z "$end" ] || mark="$mark until $end"
}}
session=$(printf '%s\n' "$input" | field session_id)
pid=$(field pid 2>/dev/null <"$run/daemon.json" || :)
if [ -n "$session" ] && [ -r "$run/status/$session" ] && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then
  on= phase= tokens= size= usd= partly= five= seven=
  {{
    read -r on phase tokens rest || :
    while read -r name value more; do
      case $name in
        window) size=$value ;;
        cost) usd=$value partly=$more ;;
        5h) five="$value $more" ;;
        7d) seven="$value $more" ;;
      esac
    done
  }} <"$run/status/$session"
  if [ "$on" = ON ]; then
    mark='◈ dbproxy ON'
    case $phase in
      '' | - | IDLE | *[!A-Za-z_]*) ;;
      *) mark="$mark $phase" ;;
    esac
    if whole "$tokens" && [ "$tokens" -ge 1000 ]; then
      mark="$mark $((tokens / 1000))k"
      whole "$size" && [ "$size" -gt 0 ] && mark="$mark ($((tokens * 100 / size))%)"
    fi
    now=$(date +%s)
    set -f # the words are data, not patterns
    set -- $five
    window 5h +%H:%M "${{1-}}" "${{2-}}" "${{3-}}"
    set -- $seven
    window 7d '+%a %H:%M' "${{1-}}" "${{2-}}" "${{3-}}"
    case $usd in
      *[!0-9.]* | *.*.* | .* | *. | '') ;;
      *.??*) mark="$mark · \$${{usd%%.*}}.$(printf '%.2s' "${{usd#*.}}")" && [ "$partly" = + ] && mark="$mark+" ;;
    esac
    [ -e "$run/degraded" ] && mark='◈ dbproxy DEGRADED'
  fi
fi
if [ -n "$before" ]; then
  printf '%s' "$before"
  [ -n "$mark" ] && printf ' | '
fi
[ -n "$mark" ] && printf '\033[1;38;5;48m%s\033[0m' "$mark"
[ -n "$before$mark" ] && printf '\n'
exit 0
"""


def script(run_folder: Path) -> str:
    """The POSIX shell script for the data directory whose ``run`` folder is given."""
    return _SCRIPT.format(run=shlex.quote(str(run_folder)))


def command_for(script_path: Path, before: str | None) -> str:
    """The status line command: our script, beside the command ``before`` that was there.

    If the script is removed by hand, the command still runs what was there before.
    """
    path = shlex.quote(str(script_path))
    if before is None:
        return path
    return (
        f"{_VARIABLE}{shlex.quote(before)}; "
        f'if [ -x {path} ]; then {path} "${_VARIABLE[:-1]}"; else sh -c "${_VARIABLE[:-1]}"; fi'
    )


def command_before(command: str, script_path: Path) -> tuple[bool, str | None]:
    """Whether a status line command is ours, and which command stood there before (None if there was none)."""
    if command == command_for(script_path, None):
        return True, None
    if not command.startswith(_VARIABLE):
        return False, None
    try:
        first = shlex.split(command)[0]
    except (ValueError, IndexError):
        return False, None
    return True, first.removeprefix(_VARIABLE).removesuffix(";")


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a JSON object in its text: ``start`` of the key, span of the value, the value itself."""

    key: str
    start: int
    value_start: int
    value_end: int
    value: object


def members(text: str, start: int = 0) -> Iterator[Member]:
    """The members of the JSON object that begins at ``start`` (white space allowed). ValueError on anything else."""
    decoder = json.JSONDecoder()
    index = _skip(text, start)
    if text[index : index + 1] != "{":
        raise ValueError("it is not a JSON object")
    index = _skip(text, index + 1)
    while text[index : index + 1] != "}":
        key, end = decoder.raw_decode(text, index)
        colon = _skip(text, end)
        if not isinstance(key, str) or text[colon : colon + 1] != ":":
            raise ValueError("it is not a JSON object")
        value_start = _skip(text, colon + 1)
        value, value_end = decoder.raw_decode(text, value_start)
        yield Member(key, index, value_start, value_end, value)
        index = _skip(text, value_end)
        if text[index : index + 1] == ",":
            index = _skip(text, index + 1)


def _skip(text: str, index: int) -> int:
    found = re.compile(r"[ \t\r\n\ufeff]*").match(text, index)
    return found.end() if found else index


def installed(text: str, script_path: Path) -> str:
    """``text`` of settings.json with our status line in it; the same text when it is there already.

    ConfigError when the text is no JSON object or holds a status line of a kind that we cannot stand beside.
    """
    if not text.strip("\ufeff \t\r\n"):
        value = json.dumps({"type": "command", "command": command_for(script_path, None)}, ensure_ascii=False)
        return f'{{\n  "statusLine": {value}\n}}\n'
    found = _status_line(text)
    if found is None:
        return _inserted(text, script_path)
    command = _command(text, found)
    if command is None:
        raise ConfigError(
            "Claude Code's settings hold a status line that is not a command, which dbproxy cannot stand beside",
            hint="Remove `statusLine` there first, or leave it as it is",
        )
    ours, before = command_before(str(command.value), script_path)
    wanted = command_for(script_path, before if ours else str(command.value))
    return text[: command.value_start] + json.dumps(wanted, ensure_ascii=False) + text[command.value_end :]


def removed(text: str, script_path: Path) -> str:
    """``text`` of settings.json without our status line: the earlier command again, or no ``statusLine`` at all."""
    found = _status_line(text) if text.strip("\ufeff \t\r\n") else None
    command = _command(text, found) if found is not None else None
    if found is None or command is None:
        return text
    ours, before = command_before(str(command.value), script_path)
    if not ours:
        return text
    if before is not None:
        return text[: command.value_start] + json.dumps(before, ensure_ascii=False) + text[command.value_end :]
    return _without_member(text, found)


def is_installed(text: str, script_path: Path) -> bool:
    """True if the settings hold our status line. ConfigError when they are no JSON object."""
    found = _status_line(text) if text.strip("\ufeff \t\r\n") else None
    command = _command(text, found) if found is not None else None
    return command is not None and command_before(str(command.value), script_path)[0]


def _status_line(text: str) -> Member | None:
    try:
        if not isinstance(json.loads(text.removeprefix("\ufeff")), dict):
            raise ValueError("it is not a JSON object")
        found = [member for member in members(text) if member.key == "statusLine"]
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"Claude Code's settings cannot be edited: {error}", hint="Mend the file first; nothing was changed"
        ) from error
    return found[-1] if found else None


def _command(text: str, status_line: Member) -> Member | None:
    value = status_line.value
    if not isinstance(value, dict) or value.get("type") != "command" or not isinstance(value.get("command"), str):
        return None
    return [member for member in members(text, status_line.value_start) if member.key == "command"][-1]


def _inserted(text: str, script_path: Path) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    value = json.dumps({"type": "command", "command": command_for(script_path, None)}, ensure_ascii=False)
    present = list(members(text))
    if not present:
        start, end = text.index("{") + 1, text.rindex("}")
        return f'{text[:start]}{newline}  "statusLine": {value}{newline}{text[end:]}'
    last = present[-1]
    lead = text[: last.start]
    indent = lead[len(lead.rstrip(" \t\r\n")) :]
    return f'{text[: last.value_end]},{indent or " "}"statusLine": {value}{text[last.value_end :]}'


def _without_member(text: str, member: Member) -> str:
    before = text[: member.start].rstrip(" \t\r\n")
    after = text[member.value_end :]
    if before.endswith(","):
        return before[:-1] + after
    rest = after.lstrip(" \t\r\n")
    if rest.startswith(","):
        return text[: member.start] + rest[1:].lstrip(" \t\r\n")
    return before + rest


def replace_text(path: Path, text: str) -> None:
    """Write a file of the user's atomically, keeping its mode and writing through symbolic links. ConfigError."""
    target = path.resolve()
    fresh = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        with open(
            os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", newline=""
        ) as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        fresh.chmod(mode)
        fresh.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}", hint="Check who owns it; nothing was changed"
        ) from error


def read_text(path: Path) -> str | None:
    """The text of a file of the user's exactly as it stands, or None when there is none. ConfigError."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint="Nothing was changed") from error
