"""Decoding: from the bytes of any image file to pixels, in batches, on the processor or on a GPU."""
