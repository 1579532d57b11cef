"""Image features that are computed only once: their key, their files, the cache."""
