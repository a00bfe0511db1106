"""Time and memory by module: from a trace to rows, and to advice."""

from torchadx.inspect._profile._profile import Profile, profile

__all__ = ["Profile", "profile"]
