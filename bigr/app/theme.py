"""The look of the page: gradio's theme in the project's colours, and style.css. Fonts are the system's."""

from pathlib import Path

import gradio as gr

CSS = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("page.js")
INK, PAPER = "#1b1e1c", "#f5f5f2"
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Ink on paper, with one colour, the mask's, for what is being painted and what is undecided."""
    grey = gr.themes.Color(
        c50="#fafaf8",
        c100="#f5f5f2",
        c200="#e7e7e2",
        c300="#d5d6cf",
        c400="#a3a69e",
        c500="#70746d",
        c600="#535751",
        c700="#3b3f3a",
        c800="#272a27",
        c900="#1b1e1c",
        c950="#131514",
    )
    return gr.themes.Base(
        primary_hue=grey, secondary_hue=grey, neutral_hue=grey, font=SANS, font_mono=MONO, radius_size="md"
    ).set(
        body_background_fill=PAPER,
        body_background_fill_dark="#131514",
        body_text_color=INK,
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1b1e1c",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_title_text_weight="500",
        block_title_text_size="13px",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1b1e1c",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_shadow="none",
        input_shadow_focus="none",
        button_primary_background_fill=INK,
        button_primary_background_fill_hover="#3b3f3a",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="#f5f5f2",
        button_primary_background_fill_hover_dark="#d5d6cf",
        button_primary_text_color_dark=INK,
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        button_primary_border_color="transparent",
        button_primary_border_color_dark="transparent",
        button_large_text_weight="500",
        slider_color=INK,
        slider_color_dark="#a3a69e",
    )
