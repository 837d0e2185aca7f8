"""The shape of one text as a model takes it: the encoder, the texts on disk and the backbone agree on it here."""

from collections.abc import Mapping
from typing import Any


def text_shape(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """[P] numbers of byte pairs, or [(1 +) P, C] features, the vector of the whole text in front; [] without texts.

    fields: text_tokens P, text_vocabulary, text_width C and text_pooled of `BackboneConfig`; absent ones are 0.
    """
    if not fields.get("text_tokens"):
        return ()
    if fields.get("text_vocabulary"):
        return (fields["text_tokens"],)
    return (fields["text_tokens"] + fields["text_pooled"], fields["text_width"])
