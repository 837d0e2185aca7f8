"""Image folders, shards and codes on disk."""
