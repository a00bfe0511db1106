"""Launch configurations: what a kernel can be tuned over, and what to use where nothing was measured."""

import dataclasses
import re

_NAME = re.compile(r"(\d+)x(\d+)x(\d+)w(\d+)s(\d+)g(\d+)(?:k(\d+))?(p?)")


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile sizes and launch options; which of the sizes M, N, K a tile dimension cuts depends on the op.

    Attributes:
        BM: Rows of an output tile.
        BN: Columns of an output tile.
        BK: Steps of the dimension that is summed over.
        warps: Warps per program.
        stages: Depth of the software pipeline.
        group: Rows of tiles that consecutive programs go through together.
        split: weight_grad: parts of the rows summed apart. dual: programs that share the tangents of a tile.
        persistent: forward: the tensor-descriptor kernel.
    """

    BM: int
    BN: int
    BK: int
    warps: int = 4
    stages: int = 3
    group: int = 8
    split: int = 1
    persistent: bool = False

    @property
    def name(self) -> str:
        """A short stable name, which :meth:`parse` reads, e.g. ``"128x128x64w8s3g8"``; k is split, p persistent."""
        split = f"k{self.split}" if self.split > 1 else ""
        persistent = "p" if self.persistent else ""
        return f"{self.BM}x{self.BN}x{self.BK}w{self.warps}s{self.stages}g{self.group}{split}{persistent}"

    @classmethod
    def parse(cls, name: str) -> "Config":
        """Return the config of a name.

        Raises:
            ValueError: Not a name that :attr:`name` gives.

        Example:
            >>> Config.parse("128x64x32w4s3g8k2").split
            2
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"not a config name: {name!r}; expected one like '128x128x64w8s3g8', '...k4' or '...p'")
        *sizes, split, persistent = match.groups()
        return cls(*map(int, sizes), split=int(split or 1), persistent=bool(persistent))
