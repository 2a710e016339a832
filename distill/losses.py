"""Distillation losses: the distance of a student's logits from the teacher's, for each image.

The loss of a batch is sum_i w_i KD_i / sum_i w_i (arXiv 2512.13175). For a student that inherits, a feature loss is
added to each KD_i (distill.inheritance). KD_i is one of

- ``kl``: pixel-wise Kullback-Leibler divergence (Hinton et al., 2015, per pixel), T^2 mean_hw sum_k p_k log(p_k / q_k)
  with p = softmax(teacher / T), q = softmax(student / T) over the classes;
- ``channel``: the same over the positions of each class instead (channel-wise distillation, Shu et al., ICCV 2021),
  T^2 mean_k sum_hw p_hw log(p_hw / q_hw);
- ``l1``: mean absolute difference of the logits, after each pixel's mean is subtracted, which softmax ignores.

To add a loss, write it, add a line to :data:`LOSSES`, and add its name to ``distill.settings.Loss``.

Shapes: N images, K classes, H x W pixels.
"""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional as F

from distill.settings import Loss

ImageLoss = Callable[[Tensor, Tensor, float], Tensor]
"""A function from the logits of student and teacher, [N, K, H, W], and a temperature to KD_i of each image, [N]."""


def distillation_loss(student_NKHW: Tensor, teacher_NKHW: Tensor, kind: Loss, temperature: float) -> Tensor:
    """KD_i of each image, [N], in float32 whatever the precision of the logits."""
    return LOSSES[kind](student_NKHW.float(), teacher_NKHW.float(), temperature)


def pixelwise_kl(student_NKHW: Tensor, teacher_NKHW: Tensor, temperature: float) -> Tensor:
    """KD_i of each image, in nats per pixel, [N]."""
    return _divergence(student_NKHW, teacher_NKHW, temperature, dim=1).mean(dim=(1, 2))


def channelwise_kl(student_NKHW: Tensor, teacher_NKHW: Tensor, temperature: float) -> Tensor:
    """KD_i of each image, in nats per class, [N]."""
    return _divergence(student_NKHW.flatten(2), teacher_NKHW.flatten(2), temperature, dim=2).mean(dim=1)


def logit_l1(student_NKHW: Tensor, teacher_NKHW: Tensor, temperature: float) -> Tensor:
    """KD_i of each image, in units of a logit, [N]; the temperature has no effect."""
    difference = student_NKHW - teacher_NKHW
    return (difference - difference.mean(dim=1, keepdim=True)).abs().mean(dim=(1, 2, 3))


LOSSES: Mapping[Loss, ImageLoss] = {"kl": pixelwise_kl, "channel": channelwise_kl, "l1": logit_l1}


def _divergence(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    student, teacher = (F.log_softmax(logits / temperature, dim=dim) for logits in (student, teacher))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=dim) * temperature**2
