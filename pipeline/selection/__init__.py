"""ADS, Approximate Distribution Sampling, its baselines, and the selected images themselves."""
