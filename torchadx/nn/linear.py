"""A linear layer with its activation, as one module."""

import torch
from torch import Tensor

from torchadx import functional
from torchadx.activations import ActivationLike, resolve


class Linear(torch.nn.Linear):
    """``activation(x @ weight.T + bias)``: :class:`torch.nn.Linear` with its activation fused in.

    Parameters, initialisation and ``state_dict`` are those of :class:`torch.nn.Linear`, so checkpoints load either way.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
        bias: Whether to add a learnable bias.
        activation: A name, a ``torch.nn`` module or a function; see :func:`torchadx.activations.resolve`.
        device: Where the parameters live.
        dtype: Their floating-point type.

    Shape:
        Input ``(..., in_features)``, output ``(..., out_features)``.

    Attributes:
        activation: Name of the registered activation.

    Example:
        >>> layer = Linear(3, 5, activation="gelu")
        >>> layer
        Linear(in_features=3, out_features=5, bias=True, activation=gelu)
        >>> layer(torch.randn(8, 3)).shape
        torch.Size([8, 5])
    """

    activation: str

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: ActivationLike = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create the layer; raises ``ValueError`` for an unknown activation."""
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = resolve(activation).name

    @classmethod
    def from_torch(cls, module: torch.nn.Linear, activation: ActivationLike = None) -> "Linear":
        """Build a layer that shares the parameters of a :class:`torch.nn.Linear`.

        Args:
            module: The layer to take over; hooks would stay behind, so it must have none.
            activation: As in the constructor.

        Returns:
            A layer in the same training mode whose ``weight`` and ``bias`` are the module's own parameters.

        Raises:
            TypeError: ``module`` is not exactly a :class:`torch.nn.Linear` (a subclass may compute something else).
            ValueError: The module has hooks or the activation is unknown.
        """
        if type(module) is not torch.nn.Linear:
            raise TypeError(f"from_torch takes a torch.nn.Linear, got {type(module).__name__}")
        hooks = [name.strip("_") for name, value in vars(module).items() if name.endswith("_hooks") and value]
        if hooks:
            raise ValueError(f"from_torch: the module has {', '.join(hooks)}, which would be lost; remove them first")
        with torch.device("meta"):
            layer = cls(module.in_features, module.out_features, module.bias is not None, activation)
        layer.weight, layer.bias = module.weight, module.bias
        return layer.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``(..., in_features)``."""
        return functional.linear(input, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        """The sizes, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation}"
