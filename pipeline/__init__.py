"""Stage one: corpora, decoding, BatchNorm statistics of a teacher, scores, and the selection by ADS.

ADS is Approximate Distribution Sampling. This package imports storage alone.
"""
