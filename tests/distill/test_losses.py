"""The loss against float64 numpy, and the equality that justifies sampling."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.losses import LOSSES, distillation_loss
from distill.settings import Loss
from distill.training.processes import WeightedSum

KINDS: list[Loss] = list(LOSSES)


def softmax(logits: NDArray[np.float64], axis: int | tuple[int, int]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def oracle(student: NDArray[np.float64], teacher: NDArray[np.float64], kind: Loss, t: float) -> NDArray[np.float64]:
    if kind == "l1":
        student, teacher = (logits - logits.mean(axis=1, keepdims=True) for logits in (student, teacher))
        return np.asarray(np.abs(student - teacher).mean(axis=(1, 2, 3)))
    axis = 1 if kind == "kl" else (2, 3)
    p, q = softmax(teacher / t, axis), softmax(student / t, axis)
    return np.asarray(t**2 * (p * np.log(p / q)).sum(axis=axis).mean(axis=(1, 2) if kind == "kl" else 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_loss_is_that_of_numpy(temperature: float, kind: Loss) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (2, 5, 4, 6, 7))
    found = distillation_loss(torch.from_numpy(student).float(), torch.from_numpy(teacher).float(), kind, temperature)
    np.testing.assert_allclose(found.numpy(), oracle(student, teacher, kind, temperature), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_predicts_as_the_teacher_has_no_loss_and_no_gradient(kind: Loss) -> None:
    teacher = torch.randn(2, 4, 5, 5)
    student = teacher.clone().requires_grad_()
    loss = distillation_loss(student, teacher, kind, 2.0).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-6, rtol=0)


def test_the_weighted_mean_leaves_out_weight_0_and_survives_all_0() -> None:
    losses = torch.tensor([1.0, 3.0, 100.0])
    assert WeightedSum.of(losses, torch.tensor([1.0, 3.0, 0.0])).mean() == pytest.approx(2.5)
    assert WeightedSum.of(losses, torch.zeros(3)).mean() == 0
