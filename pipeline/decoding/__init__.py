"""Decoding: from the bytes of any image file to pixels, in batches, on the CPU or on a GPU."""
