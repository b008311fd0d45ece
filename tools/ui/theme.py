"""How the page looks: system fonts, one accent colour, light and dark, from 400 pixels of width on."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio as gr

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def theme() -> gr.Theme:
    """Gradio's plainest theme in the page's one colour, with the fonts that the reader's system has."""
    import gradio as gr

    base = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_sm,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return base.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        slider_color="*primary_600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
    )


def status_line(text: str, refused: bool = False) -> str:
    """A line below the buttons; a refusal stands out, and is read aloud at once."""
    attributes = 'class="told refused" role="alert"' if refused else 'class="told" role="status"'
    return f"<p {attributes}>{html.escape(text[:1].upper() + text[1:])}</p>"
