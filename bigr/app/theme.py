"""The look of the page: gradio's theme in the project's colours, and style.css. Fonts are the system's."""

from pathlib import Path

import gradio as gr

CSS = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("page.js")
INK, PAPER = "#1b1e1c", "#f5f5f2"
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")


_COLOURS = {
    "body_background_fill": (PAPER, "#131514"),
    "background_fill_primary": ("#ffffff", INK),
    "block_background_fill": ("transparent", "transparent"),
    "block_border_width": ("0px", "0px"),
    "block_shadow": ("none", "none"),
    "block_title_text_color": ("*neutral_600", "*neutral_400"),
    "input_background_fill": ("#ffffff", INK),
    "input_border_color": ("*neutral_300", "*neutral_700"),
    "button_primary_background_fill": (INK, PAPER),
    "button_primary_background_fill_hover": ("#3b3f3a", "#d5d6cf"),
    "button_primary_text_color": ("#ffffff", INK),
    "button_primary_border_color": ("transparent", "transparent"),
    "button_secondary_background_fill": ("transparent", "transparent"),
    "button_secondary_background_fill_hover": ("*neutral_200", "*neutral_800"),
    "button_secondary_border_color": ("*neutral_300", "*neutral_700"),
    "slider_color": (INK, "#a3a69e"),
}
"""gradio's variables: on light, on dark."""


def theme() -> gr.themes.Base:
    """Ink on paper, with one colour, the mask's, for what is being painted and what is undecided."""
    shades = "#fafaf8 #f5f5f2 #e7e7e2 #d5d6cf #a3a69e #70746d #535751 #3b3f3a #272a27 #1b1e1c #131514"
    grey = gr.themes.Color(*shades.split())
    base = gr.themes.Base(
        primary_hue=grey, secondary_hue=grey, neutral_hue=grey, font=SANS, font_mono=MONO, radius_size="md"
    )
    return base.set(
        **{name: light for name, (light, _) in _COLOURS.items()},
        **{f"{name}_dark": dark for name, (_, dark) in _COLOURS.items()},
        body_text_color=INK,
        block_padding="0px",
        block_label_background_fill="transparent",
        block_title_text_weight="500",
        block_title_text_size="13px",
        block_info_text_color="*neutral_500",
        input_shadow="none",
        input_shadow_focus="none",
        button_border_width="1px",
        button_large_text_weight="500",
    )
