"""Derivatives that a user's own program takes in PyTorch: the second, torch.func, forward mode; right, or refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from parity.proof import adapters
from spec.mixers import families, state_shape

torch = pytest.importorskip("torch", reason="of PyTorch")

from torch_impl.mixers import mixer_module
from torch_impl.model import build
from torch_impl.ops import matmul, rowwise
from torch_impl.ops.cross_entropy import METHODS as LOSSES
from torch_impl.ops.cross_entropy import cross_entropy
from torch_impl.ops.gated_scan import METHODS as GATED_SCANS
from torch_impl.ops.gated_scan import gated_scan
from torch_impl.ops.gated_scan.unfused import decay_gates
from torch_impl.ops.scan import METHODS as SCANS
from torch_impl.ops.scan import scan

# What torch.func.jvp itself does on its first call.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

B, T = 2, 7


def methods_of(name: str) -> tuple[str, ...]:
    """Triton's kernels, interpreted here, have a test of their own."""
    return tuple(method for method in dict.fromkeys(("auto", *mixer_module(name).METHODS)) if method != "triton")


CASES = [
    *((name, method, "auto") for name in families() for method in methods_of(name)),
    *(("liquidnet", "auto", loss) for loss in LOSSES),
]


class Problem:
    """A model with noise on every parameter, tokens, masks and states, and the directions to differentiate along."""

    def __init__(self, name: str, method: str = "auto", loss: str = "auto", **options: Any):
        config, draw = families()[name].small_config(), torch.Generator().manual_seed(3)

        def normal(shape: Any) -> Any:
            return torch.randn(tuple(shape), generator=draw, dtype=torch.float64)

        options = {"compute_dtype": "float64", "method": method, "loss_method": loss} | options
        self.model = build(config, **options)
        for parameter in self.model.parameters():
            parameter.data += 0.3 * normal(parameter.shape)
        self.tokens, self.labels = (torch.randint(config.vocab_size, (B, T), generator=draw) for _ in range(2))
        self.labels[0, 2] = -100
        self.resets, self.padding = (torch.rand(B, T, generator=draw) < 0.2 for _ in range(2))
        self.states, self.of_last = normal(state_shape(config, B)), normal(state_shape(config, B))
        self.inputs = {name: x.detach().clone() for name, x in self.model.named_parameters()} | {"states": self.states}
        self.along = {name: normal(x.shape) for name, x in self.inputs.items()}

    def objective(self, inputs: Any) -> Any:
        """Of parameters and initial states; the loss, and something of the last states."""
        parameters = {f"model.{name}": x for name, x in inputs.items() if name != "states"}
        rows = self.tokens, self.labels, inputs["states"], self.resets, self.padding
        loss, last = torch.func.functional_call(_Loss(self.model), parameters, rows)
        return loss + 0.1 * (self.of_last * last * last).sum()

    def leaves(self, size: float = 0.0) -> dict[str, Any]:
        return {name: (x + size * self.along[name]).requires_grad_() for name, x in self.inputs.items()}

    def gradient(self, size: float = 0.0, **options: Any) -> tuple[Any, ...]:
        leaves = self.leaves(size)
        return torch.autograd.grad(self.objective(leaves), list(leaves.values()), **options)

    def slope(self, gradient: Any) -> Any:
        return sum((g * d).sum() for g, d in zip(gradient, self.along.values(), strict=True))

    def curvature(self) -> tuple[Any, ...]:
        """The Hessian times the direction, by central differences of gradients."""
        h = 1e-5
        pairs = zip(self.gradient(h), self.gradient(-h), strict=True)
        return tuple((above - below) / (2 * h) for above, below in pairs)

    def hessian_vector_product(self) -> tuple[Any, ...]:
        leaves = self.leaves()
        slope = self.slope(torch.autograd.grad(self.objective(leaves), list(leaves.values()), create_graph=True))
        return torch.autograd.grad(slope, list(leaves.values()))


class _Loss(torch.nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, *rows: Any) -> Any:
        return self.model.loss(*rows)


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        error = (one - other).abs().max() / (1e-2 + other.abs().max())
        assert error <= tolerance, f"{error:.1e} of the largest number"


@pytest.mark.parametrize("name, method, loss", CASES)
def test_a_hessian_vector_product(name, method, loss):
    """By `torch.autograd.grad`, which goes only where the inputs are: an error set beside that path is never met."""
    problem = Problem(name, method, loss)
    assert_close(problem.hessian_vector_product(), problem.curvature(), 1e-5)


@pytest.mark.parametrize("options", [{"remat": True}, {"loss": "chunked", "remat": True}], ids=str)
def test_activations_that_are_made_again(options, monkeypatch):
    monkeypatch.setattr("torch_impl.ops.cross_entropy.CHUNK_LOGITS", 13 * 4)
    problem = Problem("liquidnet", **options)
    assert_close(problem.gradient(), Problem("liquidnet").gradient(), 1e-12)
    assert_close(problem.hessian_vector_product(), problem.curvature(), 1e-5)


def of_operations() -> Iterator[tuple[str, Any, list[Any]]]:
    """(name, function, inputs) of the operations that have a gradient of their own."""
    draw = torch.Generator().manual_seed(5)

    def leaf(*shape: int) -> Any:
        return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()

    masks = torch.tensor([[False, True, False], [False, False, True]]), torch.tensor([[True, False, False]] * 2)
    for method in (name for name in SCANS if name != "triton"):
        run = partial(scan, method=method, resets_bt=masks[0], padding_bt=masks[1])
        yield f"scan {method}", run, [leaf(2, 3, 2), leaf(2, 3, 2), leaf(2, 2)]
    for method in (name for name in GATED_SCANS if name != "triton"):
        run = partial(gated_scan, delta_min=0.1, resets_bt=masks[0], padding_bt=masks[1], method=method)
        yield (
            f"gated scan {method}",
            lambda *x, run=run: run(*x[:2], state_bd=x[2]),
            [leaf(2, 3, 6), leaf(2), leaf(2, 2)],
        )
    yield "gates", partial(decay_gates, delta_min=0.1), [leaf(3)]
    for method in rowwise.METHODS:
        yield f"norm {method}", partial(rowwise.rms_norm, eps=1e-3, method=method), [leaf(1, 2, 3), leaf(3)]
        yield f"swiglu {method}", partial(rowwise.swiglu, method=method), [leaf(1, 2, 4)]
    # Float64 would be refused, and float32 says nothing: the operation itself.
    yield "convolution", matmul._Convolution.apply, [leaf(16, 3), leaf(2, 3)]
    labels = torch.tensor([1, -100, 3])
    for method, loss in LOSSES.items():
        yield f"loss {method}", partial(loss, labels_n=labels, compute=torch.float64), [leaf(3, 2), leaf(4, 2)]


@pytest.mark.parametrize("name, function, inputs", [pytest.param(*row, id=row[0]) for row in of_operations()])
def test_second_derivatives_of_an_operation(name, function, inputs):
    torch.autograd.gradgradcheck(function, inputs, atol=1e-6)


def test_triton_is_differentiated_twice():
    """Few numbers, for the kernels are interpreted where there is no GPU; against `sequential`."""
    if adapters.refusal("torch", "triton"):
        pytest.skip(adapters.refusal("torch", "triton"))
    device = adapters.load_module("torch", "ops.devices").default_device()
    draw, found = torch.Generator().manual_seed(1), {}
    numbers = [torch.randn(shape, generator=draw) for shape in ((1, 4, 24), (8,), (1, 8), (1, 4, 8))]
    for method in ("sequential", "triton"):
        pre, bias, state, weight = (x.to(device).requires_grad_() for x in numbers)
        gated, _ = gated_scan(pre, bias, 0.1, state, method=method)
        first = torch.autograd.grad((weight * gated).sum(), (pre, bias, state), create_graph=True)
        found[method] = torch.autograd.grad(sum((x * x).sum() for x in first), (pre, bias, state, weight))
    assert_close(found["triton"], found["sequential"], 1e-5)


@pytest.mark.parametrize("convolutions", [False, True])
def test_a_hessian_vector_product_in_float32(convolutions, monkeypatch):
    monkeypatch.setattr(matmul, "PREFERS_CONVOLUTIONS", convolutions)
    exact, rounded = Problem("liquidnet"), Problem("liquidnet", compute_dtype="float32")
    rows = 32
    for problem in (exact, rounded):
        draw = torch.Generator().manual_seed(0)
        problem.tokens, problem.labels = (torch.randint(13, (B, rows), generator=draw) for _ in range(2))
        problem.resets = problem.padding = None
    for group in (rounded.inputs, rounded.along):
        group.update({name: x.float() for name, x in group.items()})
    assert_close(rounded.hessian_vector_product(), exact.hessian_vector_product(), 1e-3)


@pytest.mark.parametrize("name", families())
def test_torch_func(name):
    """grad, jvp, forward over reverse, vmap over rows and over parameters, and dual numbers."""
    problem = Problem(name)
    gradient, inputs = problem.gradient(), problem.inputs
    objective, along = problem.objective, problem.along
    assert_close(torch.func.grad(objective)(inputs).values(), gradient, 1e-12)
    slope = problem.slope(gradient)
    assert_close([torch.func.jvp(objective, (inputs,), (along,))[1]], [slope], 1e-12)
    curvature = problem.hessian_vector_product()
    found = torch.func.jvp(torch.func.grad(objective), (inputs,), (along,))[1]
    assert_close(found.values(), curvature, 1e-11)
    reversed_twice = torch.func.grad(lambda x: problem.slope(torch.func.grad(objective)(x).values()))(inputs)
    assert_close(reversed_twice.values(), curvature, 1e-11)
    with torch.autograd.forward_ad.dual_level():
        dual = {name: torch.autograd.forward_ad.make_dual(x, along[name]) for name, x in inputs.items()}
        assert_close([torch.autograd.forward_ad.unpack_dual(objective(dual)).tangent], [slope], 1e-12)
    stacked = {name: torch.stack([x, x + along[name]]) for name, x in inputs.items()}
    moved = [objective(inputs), objective({name: x + along[name] for name, x in inputs.items()})]
    assert_close(torch.func.vmap(objective)(stacked), moved, 1e-12)
    # Of the states alone: tensors that are batched meet tensors that are not.
    some = {name: x if name == "states" else x[0] for name, x in stacked.items()}
    dims = {name: 0 if name == "states" else None for name in inputs}
    moved = [objective(inputs), objective(inputs | {"states": inputs["states"] + along["states"]})]
    assert_close(torch.func.vmap(objective, (dims,))(some), moved, 1e-12)


def gradient_of_a_row(problem: Problem, inputs: Any, *row: Any) -> Any:
    """Of the loss of one row of tokens and labels."""
    rows = [x[None] for x in row]

    def loss(parameters: Any) -> Any:
        return torch.func.functional_call(_Loss(problem.model), parameters, (*rows,))[0]

    named = {f"model.{name}": x for name, x in inputs.items() if name != "states"}
    return torch.func.grad(loss)(named)


def test_gradients_of_each_row_by_vmap():
    problem = Problem("liquidnet")
    rows = problem.tokens, problem.labels
    together = torch.func.vmap(lambda *row: gradient_of_a_row(problem, problem.inputs, *row))(*rows)
    for i in range(B):
        alone = gradient_of_a_row(problem, problem.inputs, *(x[i] for x in rows))
        assert_close([x[i] for x in together.values()], alone.values(), 1e-12)


@pytest.mark.parametrize(
    "name, options",
    [("liquidnet", {"method": "numba"}), ("hgrn", {"method": "numba"}), ("liquid_ssm", {"method": "parallel"}),
     ("liquidnet", {"loss": "fused_linear"})],
    ids=str,
)  # fmt: skip
def test_a_kernel_that_is_named_is_refused_in_torch_func(name, options):
    method = next(iter(options.values()))
    problem = Problem(name, **options)
    for run in (
        lambda: torch.func.grad(problem.objective)(problem.inputs),
        lambda: torch.func.jvp(problem.objective, (problem.inputs,), (problem.along,)),
    ):
        with pytest.raises(NotImplementedError, match=f"method '{method}' has no rule for torch.func .* use 'auto'"):
            run()
    problem.objective(problem.inputs)


def test_gates_of_long_half_lives_keep_their_digits_in_torch_func():
    """d(1 - decay)/dp = decay sigmoid(p), small as it is, to float32's precision."""
    p = torch.linspace(-12.0, 12.0, 49)
    gates, one = partial(decay_gates, delta_min=0.0), torch.ones(49)
    exact = torch.autograd.functional.jvp(gates, p.double(), one.double())[1]
    for found, truth in zip(torch.func.jvp(gates, (p,), (one,))[1], exact, strict=True):
        assert ((found - truth).abs() <= 4e-6 * truth.abs()).all()


def test_what_is_frozen_has_no_gradient_and_leaves_the_others():
    """Only some inputs require one: a frozen embedding, frozen gates, the state alone, twice over one graph."""
    problem = Problem("liquidnet")
    expected = dict(zip(problem.inputs, problem.gradient(), strict=True))
    for wanted in (["states"], ["blocks.0.mixer.decay_bias"], [name for name in expected if "embedding" not in name]):
        leaves = problem.inputs | {name: problem.leaves()[name] for name in wanted}
        value = problem.objective(leaves)
        for _ in range(2):
            found = torch.autograd.grad(value, [leaves[name] for name in wanted], retain_graph=True)
            assert_close(found, [expected[name] for name in wanted], 1e-12)


OPERATIONS = {
    **{f"scan {name}": (partial(scan, method=name), ((2, 5, 3), (2, 5, 3), (2, 3))) for name in SCANS},
    **{
        f"gated scan {name}": (
            lambda pre, bias, state, name=name: gated_scan(pre, bias, 0.1, state, method=name),
            ((2, 5, 9), (3,), (2, 3)),
        )
        for name in GATED_SCANS
    },
    **{
        f"loss {name}": (
            lambda hidden, embedding, name=name: cross_entropy(hidden, embedding, LABELS, torch.float32, name)[:1],
            ((2, 5, 3), (7, 3)),
        )
        for name in LOSSES
    },
}
LABELS = torch.tensor([[1, 2, -100, 3, 0], [6, 5, 4, -100, 1]])


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_gradient_of_one_input_alone_is_that_among_all(name):
    """What is kept for it does not hang on which of the others require one."""
    function, shapes = OPERATIONS[name]
    draw = torch.Generator().manual_seed(11)
    inputs = [torch.rand(shape, generator=draw) for shape in shapes]

    def gradients(wanted):
        leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
        try:
            value = sum((x * x).sum() for x in function(*leaves))
        except NotImplementedError as error:
            pytest.skip(str(error))
        return torch.autograd.grad(value, [leaves[i] for i in wanted])

    whole = gradients(range(len(inputs)))
    for i, expected in enumerate(whole):
        (found,) = gradients([i])
        assert expected.any() and torch.equal(found, expected), i


@pytest.mark.parametrize("method", methods_of("liquidnet"))
def test_inputs_that_lie_apart_or_are_one(method):
    """Not contiguous, and expanded: the same numbers."""
    draw = torch.Generator().manual_seed(7)
    apart = torch.randn(12, 5, 2, generator=draw, dtype=torch.float64).permute(2, 1, 0)
    bias = torch.randn(4, generator=draw, dtype=torch.float64)
    state = torch.randn(1, 4, generator=draw, dtype=torch.float64).expand(2, 4)
    found = []
    for inputs in ([apart, bias, state], [x.contiguous().clone() for x in (apart, bias, state)]):
        leaves = [x.detach().requires_grad_() for x in inputs]
        gated, last = gated_scan(leaves[0], leaves[1], 0.1, leaves[2], method=method)
        found.append(torch.autograd.grad((gated * gated).sum() + last.sum(), leaves))
    assert_close(found[0], found[1], 1e-14)


@pytest.mark.parametrize("name, method, loss", [case for case in CASES if case[1] != "auto" or case[2] != "auto"])
def test_what_the_gradient_needs_may_not_change_before_it(name, method, loss):
    """As PyTorch's own operations: an error, never the gradient of something else."""
    problem = Problem(name, method, loss)
    leaves = problem.leaves()
    value = problem.objective(leaves)
    with torch.no_grad():
        for leaf in leaves.values():
            leaf.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_a_copy_of_a_model_is_a_model_of_its_own():
    problem = Problem("liquidnet")
    other = copy.deepcopy(problem.model)
    loss = other.loss(problem.tokens, problem.labels)[0]
    loss.backward()
    assert all(parameter.grad is None for parameter in problem.model.parameters())
    assert torch.equal(problem.model.loss(problem.tokens, problem.labels)[0], loss)
