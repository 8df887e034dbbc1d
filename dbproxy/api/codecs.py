"""What whoever writes a provider may import to translate: the request as values, the answer's writer, what all share.

Re-exports only. A provider for a server that speaks a known dialect takes the codec of ``dbproxy.api.dialects``; one
for another dialect writes a `Codec` of its own over the same pieces, and checks it with ``dbproxy.testing.codecs``.
Invariant: ``__all__`` is the whole surface, pinned by a test.
"""

from __future__ import annotations

from dbproxy.model.codecs import Codec, StreamReader
from dbproxy.model.codecs.capabilities import Capabilities, capabilities
from dbproxy.model.codecs.estimate import prompt_tokens, scale_of
from dbproxy.model.codecs.failure import Failure, failure_of, overflow
from dbproxy.model.codecs.gate import Gate, Ungrammatical
from dbproxy.model.codecs.naming import ToolNames, client_id, upstream_id
from dbproxy.model.codecs.request import (
    Call,
    Choice,
    Document,
    Image,
    Request,
    Result,
    ServerTool,
    Text,
    Thinking,
    Tool,
    Turn,
    Unroutable,
    read_request,
)
from dbproxy.model.codecs.targets import bare_model, parse_target
from dbproxy.model.codecs.translation import Translation
from dbproxy.model.codecs.vault import Kept, Vault, join_signature, split_signature
from dbproxy.model.codecs.writer import MessageWriter, Tokens

__all__ = [
    "Call",
    "Capabilities",
    "Choice",
    "Codec",
    "Document",
    "Failure",
    "Gate",
    "Image",
    "Kept",
    "MessageWriter",
    "Request",
    "Result",
    "ServerTool",
    "StreamReader",
    "Text",
    "Thinking",
    "Tokens",
    "Tool",
    "ToolNames",
    "Translation",
    "Turn",
    "Ungrammatical",
    "Unroutable",
    "Vault",
    "bare_model",
    "capabilities",
    "client_id",
    "failure_of",
    "join_signature",
    "overflow",
    "parse_target",
    "prompt_tokens",
    "read_request",
    "scale_of",
    "split_signature",
    "upstream_id",
]
