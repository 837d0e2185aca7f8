"""The shape of one text as a model takes it: the encoder, the texts on disk and the backbone agree on it here."""

from collections.abc import Mapping
from typing import Any

ENCODED = ("text_tokens", "text_width", "text_pooled", "text_vocabulary")
"""The fields of `BackboneConfig` that follow from the encoder of the texts."""


def text_shape(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """[P] numbers of byte pairs, or [(1 +) P, C] features, the vector of the whole text in front; [] without texts.

    fields: text_tokens P, text_vocabulary, text_width C and text_pooled of `BackboneConfig`; absent ones are 0.
    """
    if not fields.get("text_tokens"):
        return ()
    if fields.get("text_vocabulary"):
        return (fields["text_tokens"],)
    return (fields["text_tokens"] + fields["text_pooled"], fields["text_width"])


def in_words(fields: Mapping[str, Any]) -> str:
    """What a model reads of a text, for an error; fields as `text_shape` takes them."""
    tokens, vocabulary = fields.get("text_tokens", 0), fields.get("text_vocabulary", 0)
    if vocabulary:
        return f"{tokens} tokens of {vocabulary} byte pairs"
    vector = " and a vector" if fields.get("text_pooled") else ""
    return f"{tokens} tokens{vector} of width {fields.get('text_width', 0)}"
