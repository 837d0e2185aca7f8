"""The page that `bigr app` serves: what the model does, in the browser.

`server.py` starts and ends it; `page.py` lays out the parts of `controls.py`, in the colours of `theme.py`; `tasks.py`
does what the buttons say; `links.py` has the addresses that open a tab with settings; `running.py` runs a call that can
be watched and stopped; `panel.py` makes HTML of its results; `uploads.py` reads images and masks that users bring;
`gallery.py` has the data set's images; `guard.py` refuses requests of other sites and requests beyond `bounds.py`.
Only this package imports gradio. It knows no networks and no settings: `ImageModel` does all the work.
"""

from bigr.runtime.extras import require

require("app", "bigr.app")
