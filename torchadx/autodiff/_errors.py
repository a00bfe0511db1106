"""The error and the warning of torchadx.autodiff."""


class DerivativeError(RuntimeError):
    """A derivative that cannot be had, or that would be silently wrong.

    The message says what stood in the way and what to do about it. Wrong arguments (dtypes, shapes, option names) raise
    TypeError or ValueError instead.
    """


class IndependentOutputWarning(UserWarning):
    """An output does not depend on the input it is differentiated by: its derivative is all zeros."""
