"""The metrics of outputs/metrics.json that compare models, and for each whether lower or higher is better.

Metrics that describe the data, the classifier or the size of a set are not among them.
"""

_LOWER = {
    "samples": ("fd_classifier", "kd_classifier", "fid", "kid", "over_floor"),
    "reconstructions": ("fd_classifier", "kd_classifier", "fid", "kid"),
    "codes": ("dead_bits",),
}
_HIGHER = {
    "samples": ("is_classifier", "isc", "precision", "recall", "label_agreement"),
    "reconstructions": ("is_classifier", "isc", "precision", "recall", "psnr", "label_agreement"),
    "codes": ("bit_entropy", "unique_share"),
    "retrieval": ("top1", "train_top1", "clip_score", "train_clip_score", "reconstructions_top1"),
    "attributes": ("object", "colour", "size", "count", "position", "all", "seen_all", "held_out_all"),
    "probe": ("best_top1", "best_top5"),
    "knn": ("best_top1", "best_top5"),
    "zero_shot": (
        "inpaint_label_agreement",
        "inpaint_psnr",
        "edit_label_agreement",
        "enrich_label_agreement",
        "interpolation_agreement",
    ),
}

LOWER_IS_BETTER = frozenset(f"{part}.{name}" for part, names in _LOWER.items() for name in names)
COMPARED_METRICS = tuple(
    sorted(LOWER_IS_BETTER | {f"{part}.{name}" for part, names in _HIGHER.items() for name in names})
)
"""Every metric by which models can be compared, as `<part>.<name>` of metrics.json."""
