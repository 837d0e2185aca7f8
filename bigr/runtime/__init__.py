"""Plumbing: errors, files, seeds, progress, locks, devices, processes. It knows no networks and no stages."""
