"""What a family of mixers says of itself: the base class of each file in spec/mixers/, and the values it speaks in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from spec.config import ModelConfig, TrainingConfig
from spec.inputs import REAL, require_array

Arrays = Mapping[str, np.ndarray]
Side = Mapping[str, Any]
"""Side inputs by name, arrays of any framework; one that is not there has the value that changes nothing."""

Initialiser = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
"""Initial float32 value of a parameter, from its own stream and its shape."""

STANDARD_DEVIATION = 0.02

C = TypeVar("C", bound=ModelConfig)


def normal(draw: np.random.Generator, shape: tuple[int, ...], deviation: Any = STANDARD_DEVIATION) -> np.ndarray:
    """N(0, 0.02), or another deviation, of each row where it is an array; float32."""
    return draw.standard_normal(shape, dtype=np.float32) * np.asarray(deviation, np.float32)


def zeros(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """All 0; float32."""
    return np.zeros(shape, np.float32)


def ones(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """All 1; float32."""
    return np.ones(shape, np.float32)


@dataclass(frozen=True)
class Parameter:
    """One row of the parameter table.

    Args:
        path: attribute path, `blocks.0.mixer.input.weight`; a family gives it from the mixer on, `input.weight`.
        shape: sizes of the axes.
        axes: names of the axes (see spec/axes.py); a fused axis names its parts, `value | decay | gate`.
        init: what its initial value is.
        weight_decay: whether AdamW decays it: matrices yes, norms and biases no.
        rows: rows of each part of a fused matrix; where they are left out all have as many.
        blocks: into how many matrices one below the other each part is cut, as a block-diagonal one is stored; 0 where
            its numbers are no matrix that a vector is multiplied by, as the taps of a convolution are none.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Initialiser
    weight_decay: bool
    rows: tuple[int, ...] = ()
    blocks: int = 1

    @property
    def parts(self) -> dict[str, int]:
        """How many rows each part of a fused matrix has, by name and in order; what is not fused is one part."""
        names = self.axes[0].split(" | ")
        return dict(zip(names, self.rows or [self.shape[0] // len(names)] * len(names), strict=True))


class Masks(NamedTuple):
    """Where a state is cleared before a token, and which tokens change nothing, [b, t] each; None is nowhere."""

    resets: Any = None
    padding: Any = None


NO_MASKS = Masks()


class SideInput(NamedTuple):
    """An array that a mixer reads besides its input.

    Args:
        name: as the mixer knows it.
        axes: letters of spec/axes.py in the order of the model's call, `b` and `t` among them; `l` first where each
            layer has its own. In a Batch `b` and `t` come first and the others follow.
        alias: an older name that callers may use.
        least: its least value, where it has one: what is below is refused where the host has the numbers, else NaN.
    """

    name: str
    axes: tuple[str, ...]
    alias: str = ""
    least: float | None = None

    @property
    def permutation(self) -> tuple[int, ...]:
        """Axes of an array as in a Batch, in the order of the model's call."""
        of_batch = ("b", "t", *(axis for axis in self.axes if axis not in "bt"))
        return tuple(of_batch.index(axis) for axis in self.axes)


class Mixed(NamedTuple):
    """What a mixer's reference gives.

    Args:
        y: its output, [b, t, d].
        last: the state after the last token, [b, n].
        saved: what its adjoint needs.
        activations: what is inside, by name, in the order of the family's `activations`.
    """

    y: np.ndarray
    last: np.ndarray
    saved: Any
    activations: dict[str, np.ndarray]


class Preset(NamedTuple, Generic[C]):
    """A named size, and the recipe that it is trained with by default."""

    config: C
    training: TrainingConfig


class Capabilities(NamedTuple):
    """What a backend can do with a mixer beyond what every mixer must; nothing, unless it says so.

    Args:
        compile: torch.compile takes its training step whole.
        context_parallel: several processes or devices may share a row, a stretch of time each.
        graph_capture: a CUDA graph can hold its step: the host is asked nothing on the way.
        fused_decode: `ops/decode` computes a token of the whole model in one call.
        scan_methods: its methods are those of `ops/scan`, which the self-test before training can replace.
    """

    compile: bool = False
    context_parallel: bool = False
    graph_capture: bool = False
    fused_decode: bool = False
    scan_methods: bool = False


class MixerFamily(ABC, Generic[C]):
    """One family of models: its mixer's parameters, mathematics, presets, and what tools ask of it.

    A file spec/mixers/NAME.py, or a folder of that name, ends with `FAMILY = MyFamily()`; each backend has the mixer in
    mixers/NAME.py. From outside it is a package with three modules, see `spec.mixers`. Everything else that a model is
    made of is shared, and nothing else names the family.

    Args:
        name: of the files and of `family` in JSON.
        title: in messages, after its article.
        article: "a" or "an".
        operation: what the methods of its mixer are listed under, by the self-test, `liquidnet doctor` and the proof.
        Config: its configuration.
        presets: named sizes, each with its recipe.
        place: where it stands in lists of families; those of one place follow by name.
        moving_average: its state is h_t = a h_{t-1} + (1 - a) v_t, so that its half-lives say what is left of a token.
        half_lives_of: the parameters that half-lives follow from where the content says nothing.
        activations: what is inside the mixer in order, `output` the last matrix and what it takes before it.
        recurrence: the activation that its recurrence gives and `output` takes, which no module gives.
        formulas: of tensors of a block, by path, in words for people, over the ones that all families share.
        enters: parameters that no module of their own multiplies by: the tensor of a block in which each shows first.
        shape_fields: fields of Config, besides the shared ones, that decide which parameters there are.
        constants: fields of Config that change what the recurrence computes, and no shape.
    """

    name: str
    title: str
    article: str = "a"
    operation: str
    Config: type[C]
    presets: Mapping[str, Preset[C]]
    place: int = 100
    moving_average: bool = False
    half_lives_of: str = "parameters"
    activations: tuple[str, ...]
    recurrence: str
    formulas: Mapping[str, str] = {}
    enters: Mapping[str, str] = {}
    shape_fields: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abstractmethod
    def parameters(self, config: C) -> tuple[Parameter, ...]:
        """The mixer's rows of the parameter table, in the order of the forward pass, by path from the mixer on."""

    @abstractmethod
    def state_size(self, config: C) -> int:
        """Numbers of a layer's state, n."""

    def layer_parameters(self, config: C, layer: int) -> tuple[Parameter, ...]:
        """The rows of one layer: those of `parameters`, unless initial values differ from layer to layer."""
        return self.parameters(config)

    def of_block(self, config: C, block: int) -> tuple[MixerFamily[Any], ModelConfig]:
        """Whose mixer a block has, and its configuration: this family's, unless it is made of others."""
        return self, config

    def small_config(self) -> C:
        """A model in which the proof takes no time: the first preset's constants, widths of 8, a vocabulary of 13."""
        first = next(iter(self.presets.values())).config
        widths = {field.name: 8 for field in fields(first) if field.name.startswith("d_")}
        return replace(first, **{**widths, "d_ff": 12, "vocab_size": 13, "n_layers": 2, "max_seq_len": 8})

    @abstractmethod
    def forward(
        self, z_btd: np.ndarray, weights: Arrays, config: C, state_bn: np.ndarray | None, masks: Masks, side: Side
    ) -> Mixed:
        """The mixer in the dtype of its inputs: float64 is the truth, complex128 differentiates by complex steps.

        Args:
            z_btd: normalised input.
            weights: by path from the mixer on.
            config: constants.
            state_bn: the state before the first token; None is zero.
            masks: a reset clears the state before its token; padding changes nothing.
            side: this layer's, see `of_layer`.
        """

    @abstractmethod
    def adjoint(
        self, saved: Any, grad_y_btd: np.ndarray, grad_last_bn: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """Gradients of the mixer's input, of its weights by path, and of its initial state."""

    @abstractmethod
    def each_alone(
        self, z_btd: np.ndarray, weights: Arrays, config: C, given: Arrays
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """One step of the reference at a time: what locates the first layer that a model gets wrong.

        Args:
            z_btd: normalised input, as the model had it.
            given: the activations of the model.

        Returns:
            each activation from those before it in `given`, the last state, and the mixer's output from the last one.
        """

    def side_inputs(self, config: C) -> tuple[SideInput, ...]:
        """What the mixer reads besides its input; a call may leave each out."""
        return ()

    def training_side_inputs(self, config: C, seed: int, sample: int, seq_len: int) -> dict[str, np.ndarray]:
        """Side inputs of one training sample, [t, ...] each, a pure function of seed and sample; none by default."""
        return {}

    def decay_rates(
        self, weights: Arrays, config: C, inside: Arrays | None = None, resets_bt: np.ndarray | None = None
    ) -> np.ndarray:
        """-ln of the factor by which a token lets each channel of the state decay, [b, t, n]; half-lives follow.

        Args:
            weights: float64, by path from the mixer on.
            inside: activations of the mixer on a text; None is where the content says nothing, [1, 1, n].
            resets_bt: where a document begins in that text.

        Raises:
            NotImplementedError: the family has no half-lives.
        """
        raise NotImplementedError(f"{self.article} {self.title} has no half-lives")

    def checked_side(self, config: C, given: Side, shape_bt: tuple[int, ...]) -> dict[str, Any]:
        """Side inputs of a model's call by their names, without those that are None.

        Raises:
            ValueError: one that the family does not read, one given twice, or a shape or dtype that does not fit.
        """
        known = {name: one for one in self.side_inputs(config) for name in (one.name, one.alias) if name}
        shapes = self.side_shapes(config, shape_bt)
        found: dict[str, Any] = {}
        for name, array in given.items():
            if array is None:
                continue
            if name not in known:
                takes = f"its own are {', '.join(known)}" if known else "it has none"
                raise ValueError(f"{self.article} {self.title} takes no side input {name!r}, {takes}; leave it out")
            one = known[name]
            if one.name in found:
                raise ValueError(f"{one.name} and {one.alias} are one and the same; give one of them")
            require_array(name, array, "".join(one.axes), shapes[one.name], REAL)
            found[one.name] = array
        return found

    def least_values(self, config: C) -> dict[str, float]:
        """The least value of each side input that has one, by name."""
        return {one.name: one.least for one in self.side_inputs(config) if one.least is not None}

    def side_shapes(
        self, config: C, shape_bt: tuple[int, ...], *, one_layer: bool = False
    ) -> dict[str, tuple[int, ...]]:
        """Shape of each side input, of the whole model or of one layer, which has no axis `l`."""
        sizes = {"l": config.n_layers, "b": shape_bt[0], "t": shape_bt[1], "n": self.state_size(config)}
        left_out = "l" if one_layer else ""
        return {
            one.name: tuple(sizes[axis] for axis in one.axes if axis != left_out) for one in self.side_inputs(config)
        }

    def of_layer(self, config: C, side: Side, layer: int) -> dict[str, Any]:
        """What one layer has of a model's side inputs."""
        axes = {one.name: one.axes for one in self.side_inputs(config)}
        return {name: x[layer] if axes[name][0] == "l" else x for name, x in side.items()}

    def in_order_of_call(self, config: C, side: Side) -> dict[str, Any]:
        """Side inputs of a Batch, whose axes begin with b and t, with their axes as the model's call has them."""
        order = {one.name: one.permutation for one in self.side_inputs(config)}
        return {name: x.transpose(order[name]) for name, x in side.items()}
