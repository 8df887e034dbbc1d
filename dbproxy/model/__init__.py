"""The Messages API as plain data: typed views over bodies, SSE accumulation, usage.

Never does I/O and never imports trio or ``dbproxy.wire``. Everything here reads what other programs wrote, some of
them newer than this one: unknown keys, blocks, events and shapes are passed over, never an exception.
"""
