"""Stage one: corpora, decoding, teacher and its BatchNorm statistics, scores, ADS. Imports storage."""
