"""The score store: what stage one measured, one row per image of a corpus, in a Zarr group."""
