"""File access: local folders, fsspec URLs, and atomic publishing."""
