"""Everything that a plugin may import of dbproxy; what is not here may change without notice.

Re-exports only, and no event loop: importing it costs the launcher little. Adding a name raises the minor number of
`API_VERSION`, removing or changing one the major number. Invariant: ``__all__`` is the whole surface, pinned by a test.
"""

from __future__ import annotations

from dbproxy.errors import (
    ConfigError,
    DbproxyError,
    PeerError,
    PluginError,
    ProtocolViolation,
    Refused,
    UpstreamError,
)
from dbproxy.exchange import (
    Exchange,
    Fields,
    LocalResponse,
    Outcome,
    RequestDraft,
    RequestHead,
    ResponseHead,
    SendBytes,
    Timings,
    Via,
)
from dbproxy.hooks.documents import append_line, read_document, stamp_of, write_document
from dbproxy.hooks.metrics import Sample
from dbproxy.hooks.routing import Declined, Provider, ProviderCall, ProviderLimits, Route, RouteDecision, Target
from dbproxy.hooks.services import CallAnswer, HeldBody, Redactor, Services, Storage
from dbproxy.hooks.specs import (
    API_VERSION,
    App,
    ConnectionFacts,
    Emit,
    Service,
    StreamFilter,
    StreamTap,
    TunnelDecision,
    hookimpl,
)
from dbproxy.model.accumulate import Accumulator
from dbproxy.model.agents import AgentFile
from dbproxy.model.identity import LinkHashes
from dbproxy.model.limits import rate_limits
from dbproxy.model.link import Agent, Edge, Evidence, Link, Point, RequestKind
from dbproxy.model.record import (
    ExchangeClosed,
    ExchangeLinked,
    ExchangeOpened,
    RateLimit,
    Record,
    RequestBody,
    StreamPiece,
)
from dbproxy.model.route import RouteFacts
from dbproxy.model.spans import array as json_array
from dbproxy.model.spans import members as json_members
from dbproxy.model.usage import Usage
from dbproxy.wire.coding import decode_body
from dbproxy.wire.sse import SseEvent, SseSplitter
from dbproxy.wire.sse import encode as encode_event

__all__ = [
    "API_VERSION",
    "Accumulator",
    "Agent",
    "AgentFile",
    "App",
    "CallAnswer",
    "ConfigError",
    "ConnectionFacts",
    "DbproxyError",
    "Declined",
    "Edge",
    "Emit",
    "Evidence",
    "Exchange",
    "ExchangeClosed",
    "ExchangeLinked",
    "ExchangeOpened",
    "Fields",
    "HeldBody",
    "Link",
    "LinkHashes",
    "LocalResponse",
    "Outcome",
    "PeerError",
    "PluginError",
    "Point",
    "ProtocolViolation",
    "Provider",
    "ProviderCall",
    "ProviderLimits",
    "RateLimit",
    "Record",
    "Redactor",
    "Refused",
    "RequestBody",
    "RequestDraft",
    "RequestHead",
    "RequestKind",
    "ResponseHead",
    "Route",
    "RouteDecision",
    "RouteFacts",
    "Sample",
    "SendBytes",
    "Service",
    "Services",
    "SseEvent",
    "SseSplitter",
    "Storage",
    "StreamFilter",
    "StreamPiece",
    "StreamTap",
    "Target",
    "Timings",
    "TunnelDecision",
    "UpstreamError",
    "Usage",
    "Via",
    "append_line",
    "decode_body",
    "encode_event",
    "hookimpl",
    "json_array",
    "json_members",
    "rate_limits",
    "read_document",
    "stamp_of",
    "write_document",
]
