"""Drop-in modules."""

from torchadx.nn.linear import Linear

__all__ = ["Linear"]
