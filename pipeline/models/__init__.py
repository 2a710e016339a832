"""Segmentation models: networks by name, the file that holds one, and weights from elsewhere."""
