"""Links that open a tab with settings: the page's address with `?tab=Generate&seed=7&…`.

They hold settings alone, no image and no mask.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from bigr.app.bounds import MAX_TEXT
from bigr.app.controls import QUIET

COPY = "Copy link"

_WRITE = """
async (...values) => {
    const query = new URLSearchParams(location.search.includes("__theme=dark") ? {__theme: "dark"} : {});
    query.set("tab", TAB);
    const texts = (value) => Array.isArray(value) && value.some((one) => typeof one === "string");
    NAMES.forEach((name, place) => {
        const value = values[place] ?? "";
        query.set(name, texts(value) ? value.join("\\n") : value);
    });
    history.replaceState(null, "", "?" + query);
    try {
        await navigator.clipboard.writeText(location.href);
        return "Copied";
    } catch {
        return "See address";
    }
}
"""
"""The link goes into the address bar, and where the browser lets it, to the clipboard. Line breaks divide texts."""

_THEN = f"async () => {{ await new Promise((go) => setTimeout(go, 2500)); return {json.dumps(COPY)}; }}"


@dataclass(frozen=True)
class Link:
    """The link to a tab. settings: its controls by their names in the link."""

    tab: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, tab: str, inputs: Sequence[Any]) -> "Link":
        """Of the controls among a tab's inputs: a name is the label's first words."""
        controls = [one for one in inputs if isinstance(one, gr.Slider | gr.Dropdown | gr.Radio | gr.Checkbox)]
        return cls(tab, {str(one.label).split(",")[0].lower().replace(" ", "-"): one for one in controls})

    def copied_by(self, button: gr.Button) -> None:
        """Have a button write the link."""
        script = _WRITE.replace("TAB", json.dumps(self.tab)).replace("NAMES", json.dumps(list(self.settings)))
        done = button.click(None, list(self.settings.values()), button, js=script, **QUIET)
        done.then(None, None, button, js=_THEN, **QUIET)

    def read(self, query: Mapping[str, str]) -> dict[Any, Any]:
        """The values that a link's query has for the controls; invalid ones are left out, with a warning."""
        values, wrong = {}, []
        for name, control in self.settings.items():
            if name in query:
                try:
                    values[control] = _value(control, query[name])
                except ValueError:
                    wrong.append(f"{name} {query[name][:20]!r}")
        if wrong:
            text = html.escape(", ".join(wrong))
            gr.Warning(f"Invalid settings in the link were ignored: {text}", title="Link")
        return values


def _value(control: Any, text: str) -> Any:
    """The text of a link as the control's value. Raises `ValueError` where the control cannot hold it."""
    if isinstance(control, gr.Checkbox):
        return {"true": True, "false": False}[text] if text in ("true", "false") else _refuse(text)
    if isinstance(control, gr.Slider):
        number = float(text)
        return number if control.minimum <= number <= control.maximum else _refuse(text)
    known = {str(value): value for _, value in control.choices}
    several, free = (getattr(control, name, False) for name in ("multiselect", "allow_custom_value"))
    parts = [part for part in text.split("\n" if free else ",") if part] if several else [text]
    values = [known[part] if part in known else _typed(part) if free else _refuse(text) for part in parts]
    return values if several else values[0]


def _typed(text: str) -> str:
    return text if len(text) <= MAX_TEXT else _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)
