"""Degraded mode: what a proxy does without after its worker crashed again and again.

Owns the replacements for whatever may be broken on disk. Invariant: with these a worker starts and tunnels as long as
there is a network; nothing of the user's is changed.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dbproxy.errors import DbproxyError
from dbproxy.net import trust
from dbproxy.net.ca import Authority

if TYPE_CHECKING:
    from dbproxy.config import Settings
    from dbproxy.paths import Paths


def usable(settings: Settings) -> Settings:
    """The settings without certificates that cannot be read: base-URL requests may fail, tunnels need none."""
    if settings.upstream_ca is None:
        return settings
    try:
        trust.upstream_context([settings.upstream_ca])
    except (DbproxyError, OSError):
        return replace(settings, upstream_ca=None)
    return settings


def any_authority(paths: Paths, settings: Settings) -> Authority:
    """The install's certificates, or passing ones: only TLS on our own port still needs any."""
    try:
        authority = Authority.open(paths.ca, settings.intercept)
        authority.prepare()
    except (DbproxyError, OSError):
        folder = Path(tempfile.mkdtemp(prefix="dbproxy-"))
        try:
            authority = Authority.open(folder / "ca", settings.intercept)
            authority.prepare()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return authority


def passing_token() -> str:
    """A control token that nobody knows, where the real one cannot be read or kept."""
    return secrets.token_urlsafe(24)
