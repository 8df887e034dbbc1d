"""Every error that crosses a module boundary of dbproxy.

Inside a module use builtin exceptions. An error that a person will read carries ``hint``: what to do about it.
Imports nothing of dbproxy.
"""

from __future__ import annotations


class DbproxyError(Exception):
    """Base of all our errors.

    ``hint`` is one sentence that tells a person what to do; it may be empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}. {self.hint}" if self.hint else message


class ConfigError(DbproxyError):
    """A setting is unknown, malformed or not allowed where it stands."""


class CertificateError(DbproxyError):
    """The interception root or a leaf cannot be made, read or used."""


class LaunchError(DbproxyError):
    """The child or the background proxy cannot be started."""


class PluginError(DbproxyError):
    """A plugin cannot be found, loaded or registered."""


class PeerError(DbproxyError):
    """The other end of a connection broke it, or the protocol. Never our fault."""


class ProtocolViolation(PeerError):
    """The peer sent something that its protocol forbids.

    ``status`` is the HTTP status that an HTTP client should be told (RFC 9110).
    """

    def __init__(self, message: str, *, status: int = 400, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class UpstreamError(PeerError):
    """The server behind us could not be reached or broke off.

    ``kind`` is one of ``dns``, ``connect``, ``tls``, ``timeout``, ``closed``, ``protocol``, ``parent``, ``loop``,
    ``config``.
    """

    def __init__(self, kind: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class Refused(DbproxyError):
    """We refuse a request by policy. ``status`` is the HTTP status, ``kind`` the Messages API error type."""

    def __init__(self, status: int, kind: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.kind = kind
