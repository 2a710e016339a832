"""Stage two: student, losses, WDPD weights, training loop, evaluation. Imports pipeline and storage."""
