"""What a student is taught by: how far its logits are from the teacher's, image by image.

A batch's loss is sum_i w_i KD_i / sum_i w_i (arXiv 2512.13175), where the student inherits with a feature term beside
each KD_i (distill.inheritance), and KD_i is one of

- ``kl``: pixel-wise Kullback-Leibler divergence (Hinton et al., 2015, per pixel), T^2 mean_hw sum_k p_k log(p_k / q_k)
  with p = softmax(teacher / T), q = softmax(student / T) over the classes;
- ``channel``: the same over the positions of each class instead (channel-wise distillation, Shu et al., ICCV 2021),
  T^2 mean_k sum_hw p_hw log(p_hw / q_hw);
- ``l1``: mean absolute difference of the logits, each pixel's mean taken off first, which softmax does not see.

To add a loss, write it, a line in :data:`LOSSES`, and its name in ``distill.settings.Loss``.

Shapes: N images, K classes, H x W pixels.
"""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional as F

from distill.settings import Loss

ImageLoss = Callable[[Tensor, Tensor, float], Tensor]
"""Student's logits, teacher's logits [N, K, H, W], temperature -> KD_i of each image, [N]."""


def distillation_loss(student_NKHW: Tensor, teacher_NKHW: Tensor, kind: Loss, temperature: float) -> Tensor:
    """KD_i of each image, in float32 whatever the logits' precision, [N]."""
    return LOSSES[kind](student_NKHW.float(), teacher_NKHW.float(), temperature)


def pixelwise_kl(student_NKHW: Tensor, teacher_NKHW: Tensor, temperature: float) -> Tensor:
    """KD_i of each image, in nats per pixel, [N]."""
    return _divergence(student_NKHW, teacher_NKHW, temperature, dim=1).mean(dim=(1, 2))


def channelwise_kl(student_NKHW: Tensor, teacher_NKHW: Tensor, temperature: float) -> Tensor:
    """KD_i of each image, in nats per class, [N]."""
    return _divergence(student_NKHW.flatten(2), teacher_NKHW.flatten(2), temperature, dim=2).mean(dim=1)


def logit_l1(student_NKHW: Tensor, teacher_NKHW: Tensor, temperature: float) -> Tensor:
    """KD_i of each image, in units of a logit, [N]; it knows no temperature."""
    difference = student_NKHW - teacher_NKHW
    return (difference - difference.mean(dim=1, keepdim=True)).abs().mean(dim=(1, 2, 3))


LOSSES: Mapping[Loss, ImageLoss] = {"kl": pixelwise_kl, "channel": channelwise_kl, "l1": logit_l1}


def _divergence(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    student, teacher = (F.log_softmax(logits / temperature, dim=dim) for logits in (student, teacher))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=dim) * temperature**2
