"""The page of `liquidnet ui`: its components, and what each control does.

Written for Gradio 6: https://www.gradio.app/docs/gradio/blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import gradio as gr

from tools.cli.backends import BACKENDS, Backend
from tools.plot.figure import BACKEND_COLOURS
from tools.ui.controller import BOTH, Controller
from tools.ui.generation_task import GenerationTask
from tools.ui.models import run_metrics
from tools.ui.state_view import heat_map
from tools.ui.theme import status_line

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

#: What a handler yields for a component: a value, a component with the properties that change, or `gr.skip()`.
#: Gradio gives it no type.
Update: TypeAlias = object
#: Which events a component has depends on its class.
Component: TypeAlias = Any


#: For people alone: no handler is part of a described programming interface.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def build(controller: Controller, choices: Sequence[Backend], backend: Backend) -> gr.Blocks:
    """The whole page.

    Args:
        controller: the texts of all browsers.
        choices: backends that are installed.
        backend: the one that is chosen at first.
    """
    with gr.Blocks(title="LiquidNet", analytics_enabled=False) as page:
        gr.HTML(HEAD, elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=280):
                prompt = gr.Textbox("Once upon a time", label="Prompt", lines=3, max_lines=8, elem_id="prompt")
                with gr.Row(elem_id="buttons"):
                    generate = gr.Button("Generate", variant="primary", elem_id="generate")
                    onward = gr.Button("Continue", interactive=False, elem_id="onward")
                    stop = gr.Button("Stop", interactive=False, elem_id="stop")
                status = gr.HTML(status_line(""), elem_id="told")
                with gr.Row(equal_height=True):
                    texts = [_text_box("text", visible=True), _text_box("beside", visible=False)]
            with gr.Column(scale=1, min_width=280):
                checkpoint, *controls = _controls(controller, choices, backend)
        gr.HTML(STATES)
        layer = gr.Slider(1, 2, value=1, step=1, label="Layer", visible=False, elem_id="layer", buttons=[])
        states = gr.HTML(EMPTY, elem_id="states")
        loss_head = gr.HTML("", elem_id="loss_head")
        loss = gr.LinePlot(
            None, x="step", y="loss", color="curve", x_title="optimizer step", y_title="loss (nats a token)",
            color_title=" ", color_map=_colours(), height=300, visible=False, elem_id="loss", buttons=[],
            show_label=False,
        )  # fmt: skip
        outputs = [*texts, status, states, layer]
        _connect_writing(controller, [generate, onward, stop], [prompt, checkpoint, *controls], outputs)
        _connect_loss(controller, page, checkpoint, [loss_head, loss])
    return page.queue(api_open=False, max_size=WAITING, default_concurrency_limit=AT_ONCE)


def _browser(request: gr.Request) -> str:
    return str(request.session_hash)


def _text_box(name: str, visible: bool) -> gr.Textbox:
    return gr.Textbox(
        label="Text", lines=12, max_lines=12, min_width=260, interactive=False, buttons=["copy"], elem_id=name,
        visible=visible,
    )  # fmt: skip


def _controls(controller: Controller, choices: Sequence[Backend], backend: Backend) -> list[Component]:
    """What the reader sets beside the text, in the order of `Controller.request`."""
    labels = list(controller.catalogue.labels())
    most = controller.max_length
    checkpoint = gr.Dropdown(labels, value=labels[0], label="Checkpoint", elem_id="checkpoint")
    which = [*choices, BOTH] if len(choices) > 1 else list(choices)
    radio = gr.Radio(which, value=backend, label="Backend", elem_id="backend")
    tokens = _slider("tokens", 1, most, min(400, most), 1, "Tokens to write")
    temperature = _slider("temperature", 0, 2, 0.8, 0.05, "Temperature")
    top_p = _slider("top_p", 0.01, 1, 0.95, 0.01, "Top-p")
    with gr.Row():
        top_k = gr.Number(0, label="Top-k (0: all)", precision=0, min_width=100, elem_id="top_k")
        seed = gr.Number(0, label="Seed", precision=0, min_width=100, elem_id="seed")
    return [checkpoint, radio, temperature, top_k, top_p, seed, tokens]


def _slider(name: str, low: float, high: float, value: float, step: float, label: str) -> gr.Slider:
    return gr.Slider(low, high, value=value, step=step, label=label, elem_id=name, buttons=[])


def _connect_writing(
    controller: Controller, buttons: list[gr.Button], inputs: list[Component], outputs: list[Component]
) -> None:
    *texts, status, states, slider = outputs

    def begin(request: gr.Request) -> list[Update]:
        controller.task(_browser(request)).stopped = False
        return [status_line("Waiting for its turn …"), *_buttons(generate=False, onward=False, stop=True)]

    def finish(request: gr.Request) -> list[Update]:
        task = controller.task(_browser(request))
        return _buttons(generate=True, onward=bool(task.generations) and not task.ended, stop=False)

    def stop(request: gr.Request) -> None:
        controller.task(_browser(request)).stopped = True

    def choose_layer(layer: float, request: gr.Request) -> str:
        task = controller.task(_browser(request))
        task.layer = int(layer) - 1
        return _picture(task)

    for button, onward in zip(buttons, (False, True), strict=False):
        begun = button.click(begin, None, [status, *buttons], queue=False, **PRIVATE)
        written = begun.then(_writer(controller, onward), inputs, outputs, concurrency_id="write", **PRIVATE)
        written.then(finish, None, buttons, queue=False, **PRIVATE)
    for box in texts:
        box.change(None, None, None, js=FOLLOW.format(box.elem_id))
    buttons[-1].click(stop, None, None, queue=False, **PRIVATE)
    slider.input(choose_layer, slider, states, queue=False, trigger_mode="always_last", **PRIVATE)


def _connect_loss(controller: Controller, page: gr.Blocks, checkpoint: Component, loss: list[Component]) -> None:
    def load(label: object) -> Update:
        labels = list(controller.catalogue.labels())
        # Whoever was quicker than the page keeps what was chosen.
        return gr.Dropdown(labels) if label in labels else gr.Dropdown(labels, value=labels[0])

    def choose(label: object) -> Iterator[list[Update]]:
        # The plot keeps the curves' names of the first data that it was given, so another run gets another plot.
        yield ["", gr.LinePlot(None, visible=False)]
        yield _loss(controller, label)

    def leave(request: gr.Request) -> None:
        controller.leave(_browser(request))

    checkpoint.input(choose, checkpoint, loss, concurrency_id="loss", **PRIVATE)
    loaded = page.load(load, checkpoint, checkpoint, queue=False, **PRIVATE)
    loaded.then(choose, checkpoint, loss, concurrency_id="loss", **PRIVATE)
    page.unload(leave)


def _buttons(generate: bool, onward: bool, stop: bool) -> list[Update]:
    return [gr.Button(interactive=interactive) for interactive in (generate, onward, stop)]


def _writer(controller: Controller, onward: bool) -> Callable[..., Iterator[list[Update]]]:
    def write(
        prompt: object, label: object, which: object, temperature: object, top_k: object, top_p: object, seed: object,
        tokens: object, request: gr.Request,
    ) -> Iterator[list[Update]]:  # fmt: skip
        task = controller.task(_browser(request))
        try:
            wanted = controller.request(prompt, label, which, temperature, top_k, top_p, seed, tokens)
            yield from _shown(task, task.write(wanted, onward))
        except (ValueError, OSError, ArithmeticError, MemoryError) as error:
            refusal = status_line(str(error) or "not enough memory", refused=True)
            yield [gr.skip(), gr.skip(), refusal, gr.skip(), gr.skip()]

    return write


def _shown(task: GenerationTask, progress: Iterator[str]) -> Iterator[list[Update]]:
    """What the page shows at each progress line: texts, status, the picture, and once the layers."""
    drawn, labelled = 0.0, None
    line = ""
    for line in progress:
        if not task.generations:
            yield [gr.skip(), gr.skip(), status_line(line), gr.skip(), gr.skip()]
            continue
        layer: Update = gr.skip()
        texts: list[Update] = [generation.text for generation in task.generations]
        if labelled is not task.generations:
            labelled = task.generations
            texts, layer = _labelled(task)
        picture: Update = gr.skip()
        if time.monotonic() - drawn >= PICTURE:
            picture, drawn = _picture(task), time.monotonic()
        yield [*texts, *[gr.skip()] * (2 - len(texts)), status_line(line), picture, layer]
    yield [gr.skip(), gr.skip(), status_line(line), _picture(task), gr.skip()]


def _labelled(task: GenerationTask) -> tuple[list[Update], Update]:
    """The texts in boxes that name their backends, and the slider of as many layers as the model has."""
    texts: list[Update] = [
        gr.Textbox(generation.text, label=f"Text, {generation.backend}", visible=True)
        for generation in task.generations
    ]
    if len(texts) < 2:
        texts.append(gr.Textbox("", visible=False))
    layers = len(task.generations[0].half_lives_ln)
    task.layer = min(task.layer, layers - 1)
    return texts, gr.Slider(maximum=max(layers, 2), value=task.layer + 1, visible=layers > 1)


def _picture(task: GenerationTask) -> str:
    if not task.generations or not task.generations[0].recent_states:
        return EMPTY
    first = task.generations[0]
    return heat_map(list(first.recent_states), first.half_lives_ln, task.layer)


def _colours() -> dict[str, str]:
    return {f"training, {name}": BACKEND_COLOURS[name] for name in BACKENDS} | {"validation": "#888888"}


def _loss(controller: Controller, label: object) -> list[Update]:
    """The heading that names each hand-over, and the curve; nothing for a checkpoint outside a run."""
    import pandas as pd

    try:
        metrics = run_metrics(controller.catalogue.find(label))
    except ValueError:
        metrics = []
    train = [line for line in metrics if "loss" in line]
    if not train:
        return ["", gr.LinePlot(None, visible=False)]
    changes = [(before["backend"], after["backend"], before["step"]) for before, after in pairwise(train)]
    handed_over = [f"{a} → {b} after step {step:,}" for a, b, step in changes if a != b]
    thinned = train[:: -(-len(train) // POINTS)]
    rows = [(line["step"], line["loss"], f"training, {line['backend']}") for line in thinned]
    rows += [(line["step"], line["val_loss"], "validation") for line in metrics if "val_loss" in line]
    head = "<h2>Loss of this run</h2>" + "".join(f'<p class="hint">Handed over: {one}</p>' for one in handed_over)
    return [head, gr.LinePlot(pd.DataFrame(rows, columns=["step", "loss", "curve"]), visible=True)]
