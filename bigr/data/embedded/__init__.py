"""Data sets that need no download: digits, scenes of coloured shapes with captions, emoji with their names."""
