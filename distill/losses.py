"""What a student is taught by: the pixel-wise Kullback-Leibler divergence to the teacher (Hinton et al., 2015, per
pixel).

KD_i = T^2 mean_hw sum_k p_k log(p_k / q_k), with p = softmax(teacher / T) and q = softmax(student / T); a batch's
loss is sum_i w_i KD_i / sum_i w_i (arXiv 2512.13175).

Shapes: N images, K classes, H x W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def pixelwise_kl(student_NKHW: Tensor, teacher_NKHW: Tensor, temperature: float) -> Tensor:
    """KD_i of each image, in nats per pixel, [N]."""
    student = F.log_softmax(student_NKHW.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_NKHW.float() / temperature, dim=1)
    divergence_NHW = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    return divergence_NHW.mean(dim=(1, 2)) * temperature**2


def weighted_mean(losses_N: Tensor, weights_N: Tensor) -> Tensor:
    """Weighted mean, sum w_i l_i / sum w_i; 0 where all weights are 0."""
    return (losses_N * weights_N).sum() / weights_N.sum().clamp(min=torch.finfo(losses_N.dtype).tiny)
