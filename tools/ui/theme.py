"""How the page looks: system fonts, one accent colour, light and dark, from 400 pixels of width on."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio as gr

CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; padding: 0 !important; }
.main.app { padding: 16px !important; max-width: none !important; }
.gradio-container .gap { gap: 12px; }
.gradio-container .html-container { padding: 0 !important; }
#head h1 { font-size: 1.5rem; margin: 0; }
#head p, .hint { margin: 2px 0 0; color: var(--body-text-color-subdued); }
h2 { font-size: 1.1rem; margin: 12px 0 0; }
#text textarea, #beside textarea { font-size: 1rem; line-height: 1.55; }
#buttons { flex-wrap: nowrap; gap: 8px; }
#buttons button { min-width: 0; flex: 1 1 0; }
.told { margin: 0; min-height: 1.5em; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.told.refused { color: var(--body-text-color); border-left: 4px solid #dc2626; background: #dc262618; padding: 8px 12px;
  border-radius: 4px; }
.states { display: grid; grid-template-columns: 3.6em minmax(0, 1fr); column-gap: 8px; }
.states .lives { position: relative; height: 256px; font-size: 12px; color: var(--body-text-color-subdued); }
.states .lives span { position: absolute; right: 0; transform: translateY(-50%); }
/* The newest tokens are at the right edge: a narrow page shows fewer of them, never smaller ones. */
.states .window { display: flex; justify-content: flex-end; overflow: hidden; }
.states.letters { --column: 11px; }
.states.words { --column: 15px; }
.states .columns { flex: none; width: calc(var(--columns) * var(--column)); }
.states:has(.columns) .window { max-width: max-content; }
.states img { display: block; width: 100%; height: 256px; image-rendering: pixelated;
  background: var(--background-fill-secondary); }
.states .tokens { display: flex; font: 11px/1.3 ui-monospace, monospace; }
.states .tokens span { flex: none; width: var(--column); height: 1.5em; text-align: center; overflow: hidden;
  white-space: pre; }
.states.words .tokens span { writing-mode: vertical-rl; height: 6.5em; line-height: var(--column); text-align: start; }
.scale { display: flex; align-items: center; gap: 8px; margin: 4px 0 0 calc(3.6em + 8px); font-size: 12px;
  color: var(--body-text-color-subdued); }
.scale i { width: 120px; height: 10px; border-radius: 2px;
  background: linear-gradient(to right, rgb(26,115,232), transparent, rgb(217,72,15)); }
/* A chart keeps the width that it was drawn at; it must not hold the page open when the window gets narrower. */
.vega-embed, .gradio-container canvas, .gradio-container svg.marks { max-width: 100%; }
.wrap.default.minimal, .progress-text { display: none !important; }
@media (max-width: 640px) {
  #text textarea, #beside textarea { height: 11em !important; }
}
"""


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
