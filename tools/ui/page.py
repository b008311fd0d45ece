"""The page: what stands on it, and what each control does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import gradio as gr

from tools.cli.backends import BACKENDS, Backend
from tools.plot.command import COLOURS
from tools.ui.controller import BOTH, Desk
from tools.ui.generation_task import Writing
from tools.ui.models import metrics_of
from tools.ui.state_view import heat_map
from tools.ui.theme import told

#: Browsers that write at a time; the others wait for their turn.
AT_ONCE = 4
WAITING = 64
#: Seconds between two pictures of the state.
PICTURE = 0.25
#: Points of a loss curve; of longer runs every k-th step is drawn.
POINTS = 600
HEAD = "<h1>LiquidNet</h1><p>Text from a model that remembers everything in one state of fixed size.</p>"
STATES = """<h2>The liquid state</h2><p class="hint">What one layer remembers as the text goes by. Each column is one of
the last tokens, each row a channel; at the left, the tokens after which half of it is forgotten. Rows at the bottom
follow each token, rows at the top keep what was said long ago.</p>"""
# The end of the text stays in sight, unless the reader has gone back.
FOLLOW = """() => {{ const box = document.querySelector("#{} textarea");
  if (box && box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight; }}"""
EMPTY = '<p class="hint">It appears here once the model writes.</p>'


def build(desk: Desk, choices: Sequence[Backend], backend: Backend) -> gr.Blocks:
    """The whole page.

    Args:
        desk: what lies behind it.
        choices: backends that are installed.
        backend: the one that is chosen at first.
    """
    with gr.Blocks(title="LiquidNet", analytics_enabled=False) as page:
        c = _layout(desk, choices, backend)
        _connect(desk, page, c)
    return page.queue(api_open=False, max_size=WAITING, default_concurrency_limit=AT_ONCE)


def _browser(request: gr.Request) -> str:
    return str(request.session_hash)


def _layout(desk: Desk, choices: Sequence[Backend], backend: Backend) -> SimpleNamespace:
    c = SimpleNamespace()
    gr.HTML(HEAD, elem_id="head")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=280):
            c.prompt = gr.Textbox("Once upon a time", label="Prompt", lines=3, max_lines=8, elem_id="prompt")
            with gr.Row(elem_id="buttons"):
                c.generate = gr.Button("Generate", variant="primary", elem_id="generate")
                c.onward = gr.Button("Continue", interactive=False, elem_id="onward")
                c.stop = gr.Button("Stop", interactive=False, elem_id="stop")
            c.told = gr.HTML(told(""), elem_id="told")
            with gr.Row(equal_height=True):
                box: dict[str, Any] = {"lines": 12, "max_lines": 12, "interactive": False, "buttons": ["copy"]}
                c.text = gr.Textbox(label="Text", min_width=260, elem_id="text", **box)
                c.beside = gr.Textbox(label="Text", min_width=260, elem_id="beside", visible=False, **box)
        with gr.Column(scale=1, min_width=280):
            _controls(desk, c, choices, backend)
    gr.HTML(STATES)
    c.layer = gr.Slider(1, 2, value=1, step=1, label="Layer", visible=False, elem_id="layer", buttons=[])
    c.states = gr.HTML(EMPTY, elem_id="states")
    c.loss_head = gr.HTML("", elem_id="loss_head")
    c.loss = gr.LinePlot(
        None, x="step", y="loss", color="curve", x_title="optimizer step", y_title="loss (nats a token)",
        color_title=" ", color_map=_colours(), height=300, visible=False, elem_id="loss", buttons=[], show_label=False,
    )  # fmt: skip
    return c


def _controls(desk: Desk, c: SimpleNamespace, choices: Sequence[Backend], backend: Backend) -> None:
    labels = list(desk.catalogue.labels())
    c.checkpoint = gr.Dropdown(labels, value=labels[0], label="Checkpoint", elem_id="checkpoint")
    which = [*choices, BOTH] if len(choices) > 1 else list(choices)
    c.backend = gr.Radio(which, value=backend, label="Backend", elem_id="backend")
    c.tokens = gr.Slider(1, desk.max_length, value=min(400, desk.max_length), step=1, label="Tokens to write",
                         elem_id="tokens", buttons=[])  # fmt: skip
    c.temperature = gr.Slider(0, 2, value=0.8, step=0.05, label="Temperature", elem_id="temperature",
                              buttons=[])  # fmt: skip
    c.top_p = gr.Slider(0.01, 1, value=0.95, step=0.01, label="Top-p", elem_id="top_p", buttons=[])
    with gr.Row():
        c.top_k = gr.Number(0, label="Top-k (0: all)", precision=0, min_width=100, elem_id="top_k")
        c.seed = gr.Number(0, label="Seed", precision=0, min_width=100, elem_id="seed")


def _connect(desk: Desk, page: gr.Blocks, c: SimpleNamespace) -> None:
    # For people alone: no handler is part of a described programming interface.
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    asked = [c.prompt, c.checkpoint, c.backend, c.temperature, c.top_k, c.top_p, c.seed, c.tokens]
    shown = [c.text, c.beside, c.told, c.states, c.layer]
    buttons = [c.generate, c.onward, c.stop]

    def begin(request: gr.Request) -> list[Any]:
        desk.text_of(_browser(request)).stopped = False
        return [told("Waiting for its turn …"), *_buttons(generate=False, onward=False, stop=True)]

    def finish(request: gr.Request) -> list[Any]:
        writing = desk.text_of(_browser(request))
        return _buttons(generate=True, onward=bool(writing.sides) and not writing.ended, stop=False)

    def stop(request: gr.Request) -> None:
        desk.text_of(_browser(request)).stopped = True

    def choose_layer(layer: float, request: gr.Request) -> str:
        writing = desk.text_of(_browser(request))
        writing.layer = int(layer) - 1
        return _picture(writing)

    def load(chosen: Any) -> Any:
        labels = list(desk.catalogue.labels())
        # Whoever was quicker than the page keeps what was chosen.
        return gr.Dropdown(labels) if chosen in labels else gr.Dropdown(labels, value=labels[0])

    def choose(label: Any) -> Iterator[list[Any]]:
        # The plot keeps the curves' names of the first data that it was given, so another run gets another plot.
        yield ["", gr.LinePlot(None, visible=False)]
        yield _loss(desk, label)

    def leave(request: gr.Request) -> None:
        desk.leave(_browser(request))

    for button, onward in ((c.generate, False), (c.onward, True)):
        begun = button.click(begin, None, [c.told, *buttons], queue=False, **hidden)
        written = begun.then(_writer(desk, onward), asked, shown, concurrency_id="write", **hidden)
        written.then(finish, None, buttons, queue=False, **hidden)
    for box in (c.text, c.beside):
        box.change(None, None, None, js=FOLLOW.format(box.elem_id))
    c.stop.click(stop, None, None, queue=False, **hidden)
    c.layer.input(choose_layer, c.layer, c.states, queue=False, trigger_mode="always_last", **hidden)
    c.checkpoint.input(choose, c.checkpoint, [c.loss_head, c.loss], concurrency_id="loss", **hidden)
    loaded = page.load(load, c.checkpoint, c.checkpoint, queue=False, **hidden)
    loaded.then(choose, c.checkpoint, [c.loss_head, c.loss], concurrency_id="loss", **hidden)
    page.unload(leave)


def _buttons(generate: bool, onward: bool, stop: bool) -> list[Any]:
    return [gr.Button(interactive=interactive) for interactive in (generate, onward, stop)]


def _writer(desk: Desk, onward: bool) -> Any:
    def write(
        prompt: Any, label: Any, which: Any, temperature: Any, top_k: Any, top_p: Any, seed: Any, tokens: Any,
        request: gr.Request,
    ) -> Iterator[list[Any]]:  # fmt: skip
        writing = desk.text_of(_browser(request))
        try:
            order = desk.order(prompt, label, which, temperature, top_k, top_p, seed, tokens)
            yield from _shown(writing, writing.write(order, onward))
        except (ValueError, OSError, ArithmeticError, MemoryError) as error:
            yield [gr.skip(), gr.skip(), told(str(error) or "not enough memory", refused=True), gr.skip(), gr.skip()]

    return write


def _shown(writing: Writing, progress: Iterator[str]) -> Iterator[list[Any]]:
    """What the page shows at each look: texts, the line below the buttons, the picture, and once the layers."""
    drawn, laid_out = 0.0, None
    line = ""
    for line in progress:
        if not writing.sides:
            yield [gr.skip(), gr.skip(), told(line), gr.skip(), gr.skip()]
            continue
        layer: Any = gr.skip()
        texts: list[Any] = [side.text for side in writing.sides]
        if laid_out is not writing.sides:
            laid_out = writing.sides
            texts, layer = _laid_out(writing)
        picture: Any = gr.skip()
        if time.monotonic() - drawn >= PICTURE:
            picture, drawn = _picture(writing), time.monotonic()
        yield [*texts, *[gr.skip()] * (2 - len(texts)), told(line), picture, layer]
    yield [gr.skip(), gr.skip(), told(line), _picture(writing), gr.skip()]


def _laid_out(writing: Writing) -> tuple[list[Any], Any]:
    beside = len(writing.sides) > 1
    texts = [gr.Textbox(side.text, label=f"Text, {side.backend}", visible=True) for side in writing.sides]
    layers = len(writing.sides[0].half_lives_ln)
    writing.layer = min(writing.layer, layers - 1)
    layer = gr.Slider(maximum=max(layers, 2), value=writing.layer + 1, visible=layers > 1)
    return (texts if beside else [*texts, gr.Textbox("", visible=False)]), layer


def _picture(writing: Writing) -> str:
    if not writing.sides or not writing.sides[0].seen:
        return EMPTY
    side = writing.sides[0]
    return heat_map(list(side.seen), side.half_lives_ln, writing.layer)


def _colours() -> dict[str, str]:
    return {f"training, {name}": COLOURS[name] for name in BACKENDS} | {"validation": "#888888"}


def _loss(desk: Desk, label: Any) -> list[Any]:
    """The heading that names each hand-over, and the curve; nothing for a checkpoint outside a run."""
    import pandas as pd

    try:
        metrics = metrics_of(desk.catalogue.find(label))
    except ValueError:
        metrics = []
    train = [line for line in metrics if "loss" in line]
    if not train:
        return ["", gr.LinePlot(None, visible=False)]
    changes = [(before["backend"], after["backend"], before["step"]) for before, after in pairwise(train)]
    told_of = [f"{a} → {b} after step {step:,}" for a, b, step in changes if a != b]
    thinned = train[:: -(-len(train) // POINTS)]
    rows = [(line["step"], line["loss"], f"training, {line['backend']}") for line in thinned]
    rows += [(line["step"], line["val_loss"], "validation") for line in metrics if "val_loss" in line]
    head = "<h2>Loss of this run</h2>" + "".join(f'<p class="hint">Handed over: {one}</p>' for one in told_of)
    return [head, gr.LinePlot(pd.DataFrame(rows, columns=["step", "loss", "curve"]), visible=True)]
