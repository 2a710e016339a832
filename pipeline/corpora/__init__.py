"""Corpora: finding, listing and reading piles of images, in all the forms in which people have them."""
