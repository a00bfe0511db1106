"""The algebra of operators, factored ones, and SciPy's solvers over them."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadx.autodiff.operators import FactoredOperator, hessian_operator, jacobian_operator


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def close(got, expected):
    return torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=5), k=st.integers(0, 3), scale=st.floats(-3, 3))
def test_algebra_of_factored_operators(lengths, k, scale):
    factors = [normal(rows, columns) for rows, columns in itertools.pairwise(lengths)]
    A = FactoredOperator(factors)
    dense = factors[0]
    for factor in factors[1:]:
        dense = dense @ factor
    V, U = normal(lengths[-1], k), normal(lengths[0], k)
    close(A @ V, dense @ V)
    close(A.T @ U, dense.T @ U)
    close(U.T @ A, U.T @ dense)
    close(A.dense(), dense)
    close((A.T @ A).dense(), dense.T @ dense)
    close((A.T @ A).T.dense(), dense.T @ dense)
    close((scale * A - A / 2 + A).T.dense(), (scale + 0.5) * dense.T)
    close((-A).H @ U, -dense.T @ U)
    B = FactoredOperator([normal(lengths[-1], 3), normal(3, 2)])
    close((A @ B).rmatmat(U), (dense @ B.dense()).T @ U)
    close((2 * A - A / 2).rmatmat(U), 1.5 * dense.T @ U)
    assert A.rank_bound == min(lengths) >= torch.linalg.matrix_rank(dense)
    assert A.nbytes == 8 * sum(f.numel() for f in factors)
    assert (A @ A.T).shape == (lengths[0], lengths[0])
    assert A.T.T.factors[0].data_ptr() == factors[0].data_ptr()


def test_dense_is_a_copy_and_transposes_are_lazy():
    A = FactoredOperator([normal(2, 3)])
    assert A.dense().data_ptr() != A.factors[0].data_ptr()
    lazy = A + A
    assert lazy.T.T.shape == (2, 3)
    J = jacobian_operator(torch.sin, normal(3))
    assert J.T.T is J
    assert repr(J) == "JacobianOperator(shape=(3, 3), dtype=torch.float64, device=cpu)"


def test_wrong_factors():
    with pytest.raises(ValueError, match="at least one"):
        FactoredOperator([])
    with pytest.raises(ValueError, match="expected 3 rows"):
        FactoredOperator([normal(2, 3), normal(2, 3)])
    with pytest.raises(ValueError, match="rows, columns"):
        FactoredOperator([normal(2)])
    with pytest.raises(TypeError, match=r"factors\[1\]: got torch.float32"):
        FactoredOperator([normal(2, 3), torch.ones(3, 2)])
    with pytest.raises(TypeError, match="real floating"):
        FactoredOperator([torch.ones(2, 3, dtype=torch.int64)])
    with pytest.raises(ValueError, match="meta"):
        FactoredOperator([normal(2, 3), normal(3, 2).to("meta")])


def test_wrong_vectors_and_operands():
    A = FactoredOperator([normal(2, 3)])
    for method, shape in (
        (A.matvec, (2,)),
        (A.rmatvec, (3,)),
        (A.matmat, (2, 1)),
        (A.rmatmat, (3, 1)),
        (A.matvec, (3, 1)),
    ):
        with pytest.raises(ValueError, match=r"got shape .*expected"):
            method(normal(*shape))
    with pytest.raises(TypeError, match=r"got torch.float32, expected torch.float64"):
        A @ torch.ones(3)
    with pytest.raises(ValueError, match="got a tensor on meta"):
        A @ normal(3).to("meta")
    with pytest.raises(TypeError, match="expected a tensor"):
        A.matvec([1.0, 2.0, 3.0])
    for wrong in (lambda: A @ A, lambda: A + A.T):
        with pytest.raises(ValueError, match="got shapes"):
            wrong()
    for wrong in (lambda: A * "2", lambda: A * True, lambda: A * 1j, lambda: A + 1, lambda: A @ 2):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError, match="one dtype"):
        A + FactoredOperator([torch.ones(2, 3)])


def test_scipy_solvers():
    weight, b = normal(9, 6), normal(9)
    J = jacobian_operator(lambda x: (weight @ x).sin() + weight @ x, normal(6))
    dense = J.dense()
    solved = scipy.sparse.linalg.lsqr(J.to_scipy(), b.numpy(), atol=1e-14, btol=1e-14)[0]
    close(torch.from_numpy(solved), torch.linalg.lstsq(dense, b[:, None]).solution[:, 0])
    largest = scipy.sparse.linalg.svds(J.to_scipy(), k=2, return_singular_vectors=False)
    close(torch.from_numpy(np.sort(largest)[::-1].copy()), torch.linalg.svdvals(dense)[:2])
    H = hessian_operator(lambda x: (weight @ x).cosh().sum() + x.square().sum(), normal(6) / 10)
    found = scipy.sparse.linalg.eigsh(H.to_scipy(), k=2, return_eigenvectors=False)
    close(torch.from_numpy(np.sort(found)), torch.linalg.eigvalsh(H.dense())[-2:])
    right = normal(6)
    x, info = scipy.sparse.linalg.cg(H.to_scipy(), right.numpy(), rtol=1e-13)
    assert info == 0
    close(torch.from_numpy(x), torch.linalg.solve(H.dense(), right))


def test_scipy_arrays_of_any_layout():
    A = FactoredOperator([normal(2, 3)])
    V = np.arange(12.0).reshape(4, 3).T[::-1]
    close(torch.tensor(A.to_scipy() @ V), A.dense() @ torch.tensor(V.copy()))
    close(torch.tensor(A.to_scipy().T @ np.ones((2, 1))), A.dense().T @ normal(2, 1).fill_(1))
    with pytest.raises(TypeError, match="real"):
        A.to_scipy() @ np.ones(3, complex)
    with pytest.raises(TypeError, match="bfloat16"):
        FactoredOperator([torch.ones(2, 2, dtype=torch.bfloat16)]).to_scipy()


def test_scipy_is_optional():
    code = (
        "import sys; sys.modules['scipy'] = None\n"
        "import torch\nfrom torchadx.autodiff.operators import FactoredOperator\n"
        "try: FactoredOperator([torch.ones(2, 2)]).to_scipy()\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "torchadx[scipy]"' in done.stdout
