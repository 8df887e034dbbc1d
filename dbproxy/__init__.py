"""dbproxy: an HTTPS_PROXY-scoped, byte-faithful proxy for coding agents."""

__version__ = "0.1.0"
