"""The probe on allocations whose bytes are known."""

import torch
from memory_probe import peak_above

KIB = 1024


def kib(n):
    return torch.ones(n * KIB // 8, dtype=torch.float64)


def test_nothing_is_counted_for_nothing():
    assert peak_above(lambda: None) == (None, 0)


def test_intermediates_count_while_they_live():
    x = kib(4)

    def chain():
        for _ in range(5):
            kib(8)
        a = x * 2
        b = a + 1
        del a
        return (b * b).sum()

    result, nbytes = peak_above(chain)
    assert result.item() == 9 * 512
    assert nbytes == 8 * KIB


def test_temporaries_at_once_add_up():
    assert peak_above(lambda: sum(kib(n).sum() for n in (1, 2, 3)))[1] <= 3 * KIB + 64
    assert peak_above(lambda: len([kib(n) for n in (1, 2, 3)]))[1] == 6 * KIB


def test_the_result_and_what_was_there_before_do_not_count():
    x = kib(4)
    result, nbytes = peak_above(lambda: {"y": x.exp(), "x": x, "view": x[1:]})
    assert nbytes == 0
    assert result["x"] is x
    assert peak_above(lambda: x.mul_(2).view(-1))[1] == 0


def test_a_result_inside_something_larger_holds_the_rest():
    assert peak_above(lambda: kib(8)[:128])[1] == 7 * KIB


def test_views_share_their_bytes():
    assert peak_above(lambda: kib(8).view(-1, 2).T[0].sum())[1] == 8 * KIB


def test_what_only_autograd_holds_counts():
    x = kib(4).requires_grad_()

    def saved():
        y = x.exp().sin().exp().sum()
        assert y.requires_grad
        kib(1)
        return torch.autograd.grad(y, x)[0]

    # the two exponentials and the sine's input are saved while the small tensor is made, then gradients come
    result, nbytes = peak_above(saved)
    assert result.shape == x.shape
    assert 8 * KIB <= nbytes <= 20 * KIB


def test_directions_of_a_vmap_count():
    x = kib(1)
    jacobian, nbytes = peak_above(lambda: torch.func.jacrev(torch.sin)(x))
    assert jacobian.shape == (128, 128)
    assert nbytes >= 128 * KIB
    small, less = peak_above(lambda: torch.func.jacrev(torch.sin, chunk_size=8)(x))
    assert torch.equal(small, jacobian)
    assert less != nbytes
