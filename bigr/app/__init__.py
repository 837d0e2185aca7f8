"""The page that `bigr app` serves: what the model does, in the browser.

`server.py` starts and ends it; `page.py` lays it out of what `controls.py` has, `tasks.py` does what its buttons say;
`links.py` has the addresses that open a tab with settings; `running.py` lets a call be watched; `panel.py` draws what
it comes to; `uploads.py` reads what people bring; `gallery.py` has the pictures that are there; `guard.py` refuses what
other sites send and what is too much, by the numbers of `bounds.py`.
Only this package imports gradio. It knows no networks and no settings: `ImageModel` does all the work.
"""

from bigr.runtime.extras import require

require("app", "bigr.app")
