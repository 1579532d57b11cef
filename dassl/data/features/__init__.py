"""Image features that are computed once: their key, their files, the cache."""
