"""The loss against float64 numpy, and the equality that sampling rests on."""

import numpy as np
import pytest
import torch

from distill.losses import pixelwise_kl, weighted_mean


def numpy_kl(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:  # type: ignore[type-arg]
    def softmax(logits: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        powers = np.exp(logits / temperature - (logits / temperature).max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]

    p, q = softmax(teacher), softmax(student)
    return temperature**2 * (p * np.log(p / q)).sum(axis=1).mean(axis=(1, 2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_that_of_numpy(temperature: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (2, 5, 4, 6, 7))
    found = pixelwise_kl(torch.from_numpy(student).float(), torch.from_numpy(teacher).float(), temperature)
    np.testing.assert_allclose(found.numpy(), numpy_kl(student, teacher, temperature), rtol=1e-4)


def test_a_student_that_answers_as_the_teacher_has_no_loss_and_no_gradient() -> None:
    teacher = torch.randn(2, 4, 5, 5)
    student = teacher.clone().requires_grad_()
    pixelwise_kl(student, teacher, 2.0).sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-6, rtol=0)


def test_the_weighted_mean_leaves_out_weight_0_and_survives_all_0() -> None:
    losses = torch.tensor([1.0, 3.0, 100.0])
    assert weighted_mean(losses, torch.tensor([1.0, 3.0, 0.0])) == pytest.approx(2.5)
    assert weighted_mean(losses, torch.zeros(3)) == 0
