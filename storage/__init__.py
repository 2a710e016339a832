"""Ground floor: score store, manifest, selection, FAISS index, errors. Knows no torch."""
