"""What a spool knows of one file."""

from torch import Tensor

from torchadx.memory.stores._files import Spec
from torchadx.memory.stores._read_ahead import Item


class Load:
    """The contents of a file, in memory or on their way there. Who claims a load reads it; others wait for that.

    Attributes:
        item: Which file.
        parts: The contents, once ``done``.
        claimed: Whether a thread reads it, or did.
        done: Whether there is nothing to wait for.
        error: Why it could not be read.
    """

    __slots__ = ("__weakref__", "claimed", "done", "error", "item", "parts")

    def __init__(self, item: "SpoolItem", parts: tuple[Tensor, ...] = ()) -> None:
        self.item = item
        self.parts = parts
        self.claimed = self.done = bool(parts)
        self.error: Exception | None = None


class SpoolItem(Item):
    """Tensors with a file of their own.

    Attributes:
        specs: Types and shapes.
        path: The file.
        resident: Bytes that they take up, while in memory, where they came from: none if that is a GPU.
        load: What of them is in memory, be it that it is not yet written or that it is read ahead.
        waiting: Whether no thread has begun to write them.
        written: Whether the file has them.
        dropped: Whether nobody wants them any more.
        reads: How many times they were read.
    """

    __slots__ = ("dropped", "load", "path", "reads", "resident", "specs", "waiting", "written")

    def __init__(self, specs: tuple[Spec, ...], nbytes: int, resident: int) -> None:
        super().__init__(nbytes)
        self.specs = specs
        self.resident = resident
        self.path = ""
        self.load: Load | None = None
        self.waiting = self.written = self.dropped = False
        self.reads = 0
