"""The limits of what a page may ask for. Requests beyond them are refused in one line, before any work is done."""

MAX_UPLOAD_BYTES = 20 << 20
"""Of one file."""

MAX_UPLOADS = 100
"""Files that are kept at a time, of all users; further ones are refused until older ones expire."""

UPLOAD_SECONDS = 900
"""An upload is deleted after this time. An image in use is in memory and does not need its file."""

MAX_BODY_BYTES = 24 << 20
"""Of any request: an upload with its envelope, or an event with a mask."""

MAX_UPLOAD_PIXELS = 64_000_000
"""Of one image, read from its header: a small file can hold a huge image."""

MAX_SIDE = 1536
"""Pixels along the longer side of an image to edit; a larger one is reduced first."""

MAX_MASK_PIXELS = 4 << 20
"""Of a painted mask; those that the page sends are much smaller."""

MAX_VARIANTS = 8
MAX_CLASSES = 10
"""Classes or texts in one call."""

MAX_TEXT = 1000
"""Characters of a text."""

MAX_DRAWN_PIXELS = 8 << 20
"""Of all images that a call draws: 128 of 256×256 pixels. They are in the page, without loss, until the next call."""

MAX_STEPS = 15
"""Images on the way from one class to another."""

MAX_SEED = 9999
MAX_GUIDANCE = 12.0

MAX_WAITING = 16
"""Calls in the queue; the model works on one at a time."""

MAX_SESSIONS = 64
"""Pages whose image is kept in memory; the oldest are dropped first."""

MAX_COMPARED = 400
"""Images of the data set that are searched for the most similar."""
