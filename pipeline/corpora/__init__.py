"""Corpora: finding, listing and reading collections of images in several formats."""
