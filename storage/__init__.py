"""Ground floor: score store, manifest, selection, FAISS index and errors. Nothing here imports torch."""
