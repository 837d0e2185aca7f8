"""Settings: the only reader of params.yaml.

Every value stands in params.yaml and nowhere else: no setting has a default, so nothing in this package can change a
result, and stages import it for its types alone. What does not fit is one line that names the key, what it was, and
what is allowed.
"""

from bigr.config.reading import load, read, validate
from bigr.config.settings import (
    EMBEDDED,
    CodesSettings,
    DatasetSettings,
    EditingSettings,
    EvaluationSettings,
    GeneratorSettings,
    Precision,
    PromotionMetric,
    PromotionSettings,
    RunSettings,
    SamplesSettings,
    ServingSettings,
    Settings,
    ShardsSettings,
    Target,
    TokenizerSettings,
    TrainingSettings,
    TranscoderSettings,
)

__all__ = [
    "EMBEDDED",
    "CodesSettings",
    "DatasetSettings",
    "EditingSettings",
    "EvaluationSettings",
    "GeneratorSettings",
    "Precision",
    "PromotionMetric",
    "PromotionSettings",
    "RunSettings",
    "SamplesSettings",
    "ServingSettings",
    "Settings",
    "ShardsSettings",
    "Target",
    "TokenizerSettings",
    "TrainingSettings",
    "TranscoderSettings",
    "load",
    "read",
    "validate",
]
