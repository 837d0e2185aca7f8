"""Sets of images to measure, of any kind: folders, tar shards, ADM's arrays, statistics."""
