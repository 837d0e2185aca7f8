"""How far a set of images is from another: extractors, statistics, distances; the offline classifier."""
