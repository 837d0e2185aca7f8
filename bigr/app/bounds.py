"""How much one page may ask for. What is asked beyond is refused in one line, before any work is done."""

MAX_UPLOAD_BYTES = 20 << 20
"""Of one file."""

MAX_UPLOADS = 100
"""Files that are kept at a time, of all who have the page open; further ones are refused until older ones expire."""

UPLOAD_SECONDS = 900
"""After so long an upload is deleted. A picture in use is in memory, and needs its file no more."""

MAX_BODY_BYTES = 24 << 20
"""Of any request: an upload with its envelope, or an event with a mask."""

MAX_UPLOAD_PIXELS = 64_000_000
"""Of one picture, told from its header: a small file can unfold to a huge picture."""

MAX_SIDE = 1536
"""Pixels along the longer side of a picture that is worked on; a larger one is made smaller first."""

MAX_MASK_PIXELS = 4 << 20
"""Of a painted mask; the page's own are a fraction of it."""

MAX_VARIANTS = 8
MAX_CLASSES = 10
"""Classes drawn in one go."""

MAX_STEPS = 15
"""Pictures on the way from one class to another."""

MAX_SEED = 9999
MAX_GUIDANCE = 12.0

MAX_WAITING = 16
"""Calls in the queue; the model works on one at a time."""

MAX_SESSIONS = 64
"""Pages whose picture is remembered; the oldest are forgotten first."""

MAX_COMPARED = 400
"""Pictures of the data set among which the nearest are sought."""
