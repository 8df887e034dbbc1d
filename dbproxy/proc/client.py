"""The client's own settings files: what in them would lead its traffic past us or away from our certificate.

Owns where Claude Code keeps settings (user, project, local, managed, ``--settings``), their precedence, and the list of
conflicts in plain words. Must never write them, import trio or read ``os.environ``. Invariant: a broken or unreadable
file is a finding, never an error.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dbproxy.paths import home
from dbproxy.proc.env import covers, same_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MAX_FILE = 4_000_000
_OTHER_CLOUDS = {
    "CLAUDE_CODE_USE_BEDROCK": "Amazon Bedrock",
    "CLAUDE_CODE_USE_VERTEX": "Google Vertex AI",
    "CLAUDE_CODE_USE_FOUNDRY": "Microsoft Foundry",
}


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """One settings file of the client. ``kind`` is managed, command line, local, project or user;
    ``problem`` says why it could not be read, or is empty."""

    kind: str
    path: str
    env: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Conflict:
    """One thing that leads the client past us. ``where`` is a file or "your environment"; ``effect`` and ``advice`` are
    sentences without a full stop."""

    variable: str
    where: str
    effect: str
    advice: str

    def __str__(self) -> str:
        return f"{self.variable} in {self.where}: {self.effect}. {self.advice}"


def user_settings_path(env: Mapping[str, str]) -> Path:
    """The user's own settings file; CLAUDE_CONFIG_DIR is honoured as the client does."""
    folder = env.get("CLAUDE_CONFIG_DIR")
    return (Path(folder).expanduser() if folder else home(env) / ".claude") / "settings.json"


def managed_settings_paths(platform: str = sys.platform) -> tuple[Path, ...]:
    """Where an administrator's settings stand, with the drop-in folder, strongest last."""
    if platform == "darwin":
        base = Path("/Library/Application Support/ClaudeCode")
    elif platform == "win32":
        base = Path("C:/Program Files/ClaudeCode")
    else:
        base = Path("/etc/claude-code")
    try:
        extra = sorted((base / "managed-settings.d").glob("*.json"))
    except OSError:
        extra = []
    return (base / "managed-settings.json", *extra)


def settings_files(
    env: Mapping[str, str],
    cwd: Path | None,
    arguments: Sequence[str] = (),
    *,
    managed: Sequence[Path] | None = None,
) -> list[SettingsFile]:
    """Every settings file that exists for a client started with ``arguments`` in ``cwd``, strongest first."""
    found: list[SettingsFile | None] = []
    paths = managed_settings_paths() if managed is None else managed
    found.extend(_read("managed", path) for path in reversed(list(paths)))
    found.append(_from_arguments(arguments, cwd))
    if cwd is not None:
        found.append(_read("local", cwd / ".claude" / "settings.local.json"))
        found.append(_read("project", cwd / ".claude" / "settings.json"))
    user = user_settings_path(env)
    if cwd is None or user != cwd / ".claude" / "settings.json":
        found.append(_read("user", user))
    return [file for file in found if file is not None]


def effective(files: Iterable[SettingsFile]) -> dict[str, tuple[str, SettingsFile]]:
    """Each variable that the files set, with its winning value and the file it comes from."""
    values: dict[str, tuple[str, SettingsFile]] = {}
    for file in files:
        for name, value in file.env.items():
            values.setdefault(name, (value, file))
    return values


def conflicts(
    env: Mapping[str, str], files: Iterable[SettingsFile], *, url: str, intercept: Sequence[str], root: str
) -> list[Conflict]:
    """What would lead the client's model traffic past the proxy at ``url``, or make it reject our certificate.

    ``env`` is the user's environment; the files' ``env`` wins over it inside the client. ``root`` is the file of our
    roots, named in the advice.
    """
    settings = effective(files)
    found: list[Conflict] = []
    for name in ("HTTPS_PROXY", "https_proxy"):
        if name in settings and settings[name][0] and not same_endpoint(settings[name][0], url):
            found.append(
                Conflict(
                    name,
                    _where(settings[name][1]),
                    "it replaces ours inside Claude Code, which then goes past dbproxy",
                    "Remove it there and export it in your shell: dbproxy uses it as its own parent proxy",
                )
            )
            break
    for name in ("NO_PROXY", "no_proxy"):
        exempt = [host for host in intercept if name in settings and _exempt(settings[name][0], host)]
        if exempt:
            found.append(
                Conflict(
                    name,
                    _where(settings[name][1]),
                    f"it exempts {', '.join(exempt)} from the proxy, so Claude Code goes past dbproxy",
                    "Remove that entry there",
                )
            )
            break
    if settings.get("NODE_EXTRA_CA_CERTS", ("", None))[0]:
        value, file = settings["NODE_EXTRA_CA_CERTS"]
        found.append(
            Conflict(
                "NODE_EXTRA_CA_CERTS",
                _where(file),
                "it replaces ours inside Claude Code, which may then reject our certificate and be tunnelled unseen",
                f"Remove it there and export it in your shell (dbproxy adds {value} to its own list), "
                f"or append {root} to that file",
            )
        )
    found.extend(_elsewhere({**{name: (value, None) for name, value in env.items()}, **settings}, url, intercept))
    return found


def _elsewhere(
    values: Mapping[str, tuple[str, SettingsFile | None]], url: str, intercept: Sequence[str]
) -> list[Conflict]:
    found: list[Conflict] = []
    base_url, file = values.get("ANTHROPIC_BASE_URL", ("", None))
    if base_url and not same_endpoint(base_url, url) and not _intercepted(base_url, intercept):
        found.append(
            Conflict(
                "ANTHROPIC_BASE_URL",
                _where(file),
                f"requests go to {_without_userinfo(base_url)}, which dbproxy does not read",
                "Unset it, or add its host to DBPROXY_INTERCEPT if it is https",
            )
        )
    for name, cloud in _OTHER_CLOUDS.items():
        value, file = values.get(name, ("", None))
        if value.strip().lower() not in ("", "0", "false", "no", "off"):
            found.append(
                Conflict(
                    name,
                    _where(file),
                    f"requests go to {cloud}, which dbproxy passes on unread",
                    "Unset it to use the Anthropic API through dbproxy",
                )
            )
    return found


def _where(file: SettingsFile | None) -> str:
    return "your environment" if file is None else file.path


def _exempt(no_proxy: str, host: str) -> bool:
    return any(covers(entry, host.lower()) for entry in no_proxy.replace(",", " ").split())


def _intercepted(base_url: str, intercept: Sequence[str]) -> bool:
    try:
        host = (urlsplit(base_url).hostname or "").lower().rstrip(".")
    except ValueError:
        return False
    return base_url.lower().startswith("https:") and host in {name.lower().rstrip(".") for name in intercept}


def _without_userinfo(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}".partition("?")[0]


def _from_arguments(arguments: Sequence[str], cwd: Path | None) -> SettingsFile | None:
    value = ""
    for index, word in enumerate(arguments):
        if word == "--":
            break
        if word == "--settings" and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif word.startswith("--settings="):
            value = word.partition("=")[2]
    if not value:
        return None
    if value.lstrip().startswith("{"):
        return _parse("command line", "--settings", value.encode("utf-8", "surrogateescape"))
    return _read("command line", (cwd or Path()) / value)


def _read(kind: str, path: Path) -> SettingsFile | None:
    try:
        if not path.exists():
            return None
        if path.stat().st_size > _MAX_FILE:
            return SettingsFile(kind, str(path), problem="it is larger than 4 MB")
        return _parse(kind, str(path), path.read_bytes())
    except OSError as error:
        return SettingsFile(kind, str(path), problem=error.strerror or str(error))


def _parse(kind: str, path: str, data: bytes) -> SettingsFile:
    try:
        raw = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return SettingsFile(kind, path, problem=f"it is not valid JSON: {error}")
    variables = raw.get("env") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(variables, dict | None):
        return SettingsFile(kind, path, problem="it is not an object with an object `env`")
    return SettingsFile(kind, path, {str(name): _text(value) for name, value in (variables or {}).items()})


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
