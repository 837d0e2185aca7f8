"""The page that `bigr app` serves: what the model does, in the browser.

Only this package imports gradio. It knows no networks and no settings: `ImageModel` does all the work.
"""

from bigr.runtime.extras import require

require("app", "bigr.app")
