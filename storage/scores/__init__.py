"""The score store: the results of stage one in a Zarr group, one row per image of a corpus."""
