"""Bytes to events and back, without I/O: sniffing, request targets, heads and framing, SSE, content codings.

Never imports trio, sockets or clocks, nor ``dbproxy.model``. Every parser here takes its input in any split.
"""
