"""The training loop of supervised training and of distillation, and the folder of a run."""
