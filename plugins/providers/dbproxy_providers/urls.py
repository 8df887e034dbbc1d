"""From the address that a person gives to the URL of a request, however much of it they gave.

Pure. Source: case 38 (S1 dropped the path and knew no address without a scheme). Invariants: a path that names a
version is taken as it stands; a credential in an address is refused; what is not understood is an error in plain
words.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

CHAT, RESPONSES, GEMINI, MESSAGES = "chat", "responses", "gemini", "messages"

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_VERSION: Final = re.compile(r"v\d+(?:(?:alpha|beta)\d*)?")
_HOST: Final = re.compile(r"[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]+)?\]")
#: Ends of paths that name an operation: people copy whole URLs out of manuals.
_OPERATIONS: Final = ("/chat/completions", "/completions", "/responses", "/v1/messages", "/messages", "/models")
_SECRET_QUERY: Final = re.compile(r"(?:^|&)(?:api[_-]?key|key|token|access_token|sig)=", re.IGNORECASE)
_NEAR: Final = (".local", ".lan", ".internal", ".localhost", ".home.arpa", ".test")


@dataclass(frozen=True, slots=True)
class Base:
    """An address: ``origin`` is scheme, host and port, ``path`` what follows without an operation or a slash at its
    end, ``query`` what has to go with every request ("" as a rule)."""

    origin: str
    host: str
    path: str
    query: str = ""

    @property
    def plain(self) -> bool:
        """Everybody on the way can read along."""
        return self.origin.startswith("http://") and not is_near(self.host)


def read_base(text: str) -> Base:
    """The address that ``text`` gives. Raises ValueError that says what is wrong and what to write."""
    given = text.strip()
    if not given or any(char.isspace() or not char.isprintable() for char in given):
        raise ValueError(f"the address {text!r} is empty or holds blanks: write https://HOST/PATH")
    if not _SCHEME.match(given):
        given = f"{'http' if is_near(_host_of(given)) else 'https'}://{given}"
    if "@" in re.split(r"[/?#]", given.partition("://")[2], maxsplit=1)[0]:
        raise ValueError("the address holds a credential: give it as key_env or key_file")
    try:
        parts = urlsplit(given)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"{text!r} is no address: write https://HOST:PORT/PATH") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise ValueError(f"the address begins with {parts.scheme}://: only http:// and https:// are spoken")
    if _SECRET_QUERY.search(parts.query):
        raise ValueError("the address holds a key in its query: give it as key_env or key_file")
    if not host or parts.fragment or not _HOST.fullmatch(parts.netloc.rpartition(":")[0] if port else parts.netloc):
        raise ValueError(f"{text!r} is no address: write https://HOST:PORT/PATH")
    path = re.sub(r"/{2,}", "/", parts.path).rstrip("/")
    for operation in _OPERATIONS:
        if path.endswith(operation):
            path = path.removesuffix(operation).rstrip("/")
            break
    authority = f"[{host}]" if ":" in host else host
    origin = f"{parts.scheme.lower()}://{authority}" + (f":{port}" if port else "")
    return Base(origin, host, path, parts.query)


def is_near(host: str) -> bool:
    """This machine or a private network, as far as the name tells: where servers speak plain HTTP."""
    host = host.strip("[]").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_NEAR)
    return address.is_private or address.is_loopback or address.is_link_local


def endpoint(base: Base, api: str, model: str = "", *, stream: bool = False) -> str:
    """The URL of one request in this dialect."""
    query = base.query
    if api == MESSAGES:
        # Native addresses have no version, and what a gateway has further in front is none of ours.
        path = base.path + ("/messages" if _VERSION.fullmatch(base.path.rpartition("/")[2]) else "/v1/messages")
    elif api == GEMINI:
        path = _versioned(base.path.removesuffix("/openai"), "/v1beta") + _gemini_model(model)
        path += ":streamGenerateContent" if stream else ":generateContent"
        if stream:
            query = "alt=sse" + (f"&{query}" if query else "")
    else:
        path = _versioned(base.path, "/v1") + ("/responses" if api == RESPONSES else "/chat/completions")
    return f"{base.origin}{path}" + (f"?{query}" if query else "")


def _versioned(path: str, version: str) -> str:
    """With the version, unless the path names one, or a deployment (Azure), which has it in its query."""
    segments = path.split("/")
    named = "deployments" in segments or any(_VERSION.fullmatch(segment) for segment in segments)
    return path if named else path + version


def _gemini_model(model: str) -> str:
    """A model's place: ``models/`` may be written or not; tuned models have a place of their own."""
    if model.startswith("tunedModels/"):
        return f"/tunedModels/{quote(model.removeprefix('tunedModels/'), safe='')}"
    return f"/models/{quote(model.removeprefix('models/'), safe='')}"


def _host_of(text: str) -> str:
    """The host in an address without a scheme."""
    authority = re.split(r"[/?#]", text, maxsplit=1)[0]
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]
