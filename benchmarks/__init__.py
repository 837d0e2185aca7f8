"""Measurements: how fast this machine samples and trains, beside a literal implementation of the published algorithm.

    python -m benchmarks            the comparison, of the digits' model and of L
    python -m benchmarks --help     all measurements

Nothing here is part of the library. What was measured is in docs/performance.md.
"""
