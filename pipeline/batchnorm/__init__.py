"""BatchNorm statistics of single images: layers, moments, distances, embeddings."""
