"""Where bytes lie and how they get there: local folders, fsspec URLs, and publishing whole or not at all."""
