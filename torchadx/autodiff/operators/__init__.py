"""Linear operators: derivatives known by their products with vectors, without their matrices."""

from torchadx.autodiff.operators._base import LinearOperator
from torchadx.autodiff.operators._factored import FactoredOperator
from torchadx.autodiff.operators._ggn import ggn_operator
from torchadx.autodiff.operators._hessian import hessian_operator
from torchadx.autodiff.operators._jacobian import jacobian_operator

__all__ = ["FactoredOperator", "LinearOperator", "ggn_operator", "hessian_operator", "jacobian_operator"]
