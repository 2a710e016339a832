"""Stage two: student, losses, weights of WDPD, training loop and evaluation.

WDPD is Weighted Distribution Progressive Distillation. This package imports pipeline and storage.
"""
