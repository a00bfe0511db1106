"""Derivatives that choose how to compute themselves.

:func:`jacobian` and :func:`hessian` record a function, cut it where few numbers pass, and plan which parts move
tangents forward, which move cotangents backward, and where Jacobians are multiplied. :func:`hvp`, :func:`laplacian`,
:func:`divergence` and :func:`directional` need no dense derivative; operators never form one.
"""

from torchadx.autodiff._directional import directional
from torchadx.autodiff._errors import DerivativeError, IndependentOutputWarning
from torchadx.autodiff._jacobian import hessian, jacfn, jacobian, plan_hessian, plan_jacobian
from torchadx.autodiff._plan import JacobianPlan
from torchadx.autodiff._products import hvp, vhp
from torchadx.autodiff._traces import Estimate, divergence, laplacian
from torchadx.autodiff.operators import (
    FactoredOperator,
    LinearOperator,
    ggn_operator,
    hessian_operator,
    jacobian_operator,
)

__all__ = [
    "DerivativeError",
    "Estimate",
    "FactoredOperator",
    "IndependentOutputWarning",
    "JacobianPlan",
    "LinearOperator",
    "directional",
    "divergence",
    "ggn_operator",
    "hessian",
    "hessian_operator",
    "hvp",
    "jacfn",
    "jacobian",
    "jacobian_operator",
    "laplacian",
    "plan_hessian",
    "plan_jacobian",
    "vhp",
]
