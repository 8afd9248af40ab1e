"""Retina: the embedding service. `spec`, `keys` and `matrix` are free of torch; import them from anywhere."""
