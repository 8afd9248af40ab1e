"""Point-in-time training on archived embeddings."""
