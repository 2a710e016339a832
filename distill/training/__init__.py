"""The training loop that a supervised teacher and a distilled student share, and the folder of a run."""
