"""Other projects' kernels and models doing our job, each optional.

A peer's function imports what it needs, so ImportError says that it is not installed, and returns something ready to
be timed. Where a peer wants another layout it gets its inputs in that layout for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from spec.config import ModelConfig, TrainingConfig
from spec.parameters import num_parameters
from tools.bench.timer import Call, NotRun

Shape = tuple[int, int, int]
Job = tuple[Callable[..., Any], list[Any]]
"""A function of tensors, and tensors to call it with, all of them differentiated."""


def _fla(kernel: str, compiled: bool) -> Callable[[Shape, Any, float], Job]:
    """The mixer by flash-linear-attention's HGRN kernels: x = (1 - alpha) tanh(value), g = log alpha, o sigmoid(gate).

    Gates in torch, bfloat16 between the parts, as the project's own HGRN layer has them.
    """

    def make(shape: Shape, device: Any, delta_min: float) -> Job:
        import fla.ops.hgrn
        import torch
        import torch.nn.functional as F

        recurrence = getattr(fla.ops.hgrn, kernel)

        def before(pre_btx, decay_bias_d):
            value_btd, p_btd, _ = pre_btx.chunk(3, dim=-1)
            log_decay_btd = -F.softplus(p_btd.float() + decay_bias_d) - delta_min
            drive_btd = -torch.expm1(log_decay_btd) * torch.tanh(value_btd.float())
            return drive_btd.to(pre_btx.dtype), log_decay_btd.to(pre_btx.dtype)

        def after(states_btd, pre_btx):
            return states_btd * torch.sigmoid(pre_btx.chunk(3, dim=-1)[2])

        if compiled:
            before, after = torch.compile(before, dynamic=False), torch.compile(after, dynamic=False)

        def mixer(pre_btx, decay_bias_d):
            states_btd, _ = recurrence(*before(pre_btx, decay_bias_d))
            return after(states_btd, pre_btx)

        return mixer, mixer_inputs(shape, device)

    return make


def mixer_inputs(shape: Shape, device: Any) -> list[Any]:
    """Pre-activations in bfloat16 and the decay bias in float32, with half-lives from 1 to 4096 tokens."""
    import torch

    b, t, d = shape
    generator = torch.Generator(device).manual_seed(0)
    pre_btx = torch.randn(b, t, 3 * d, device=device, generator=generator).to(torch.bfloat16)
    half_lives_d = torch.logspace(0.0, float(np.log10(4096.0)), d, device=device)
    return [pre_btx.requires_grad_(), torch.log(torch.expm1(float(np.log(2.0)) / half_lives_d)).requires_grad_()]


def _selective_scan(shape: Shape, device: Any, delta_min: float) -> Job:
    """mamba-ssm's selective scan at our width: more work (16 states a channel), channels before time."""
    import torch
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    b, t, d = shape
    generator = torch.Generator(device).manual_seed(0)
    value, delta, gate = (
        torch.randn(b, d, t, device=device, generator=generator).to(torch.bfloat16).requires_grad_() for _ in range(3)
    )
    into, out = (
        torch.randn(b, 16, t, device=device, generator=generator).to(torch.bfloat16).requires_grad_() for _ in range(2)
    )
    rates = (-torch.arange(1.0, 17.0, device=device).repeat(d, 1)).requires_grad_()

    def mixer(value, delta, gate, rates, into, out):
        return selective_scan_fn(value, delta, rates, into, out, z=gate, delta_softplus=True)

    return mixer, [value, delta, gate, rates, into, out]


MIXERS: dict[str, Callable[[Shape, Any, float], Job]] = {
    "fla fused_recurrent_hgrn, eager gates": _fla("fused_recurrent_hgrn", False),
    "fla fused_recurrent_hgrn, compiled gates": _fla("fused_recurrent_hgrn", True),
    "fla chunk_hgrn, eager gates": _fla("chunk_hgrn", False),
    "fla chunk_hgrn, compiled gates": _fla("chunk_hgrn", True),
    "mamba-ssm selective_scan, 16 states": _selective_scan,
}


def _accelerated(kernel: str) -> Callable[[Shape, Any], Job]:
    """accelerated-scan, float32, [b, d, t], lengths that are powers of two."""

    def make(shape: Shape, device: Any) -> Job:
        import importlib

        import torch

        b, t, d = shape
        if t & (t - 1):
            raise NotRun(f"lengths must be powers of two, got {t}")
        try:
            scan = importlib.import_module(f"accelerated_scan.{kernel}").scan
        except (OSError, RuntimeError) as error:
            raise NotRun(f"accelerated_scan.{kernel} is installed but its kernel did not build: {error}") from error
        generator = torch.Generator(device).manual_seed(0)
        decay = torch.rand(b, d, t, device=device, generator=generator).requires_grad_()
        drive = torch.randn(b, d, t, device=device, generator=generator).requires_grad_()
        return scan, [decay, drive]

    return make


SCANS: dict[str, Callable[[Shape, Any], Job]] = {
    "accelerated-scan warp": _accelerated("warp"),
    "accelerated-scan scalar (Triton)": _accelerated("scalar"),
}


def gpt2(config: ModelConfig, training: TrainingConfig, device: Any, compiled: bool) -> tuple[Call, int]:
    """A train step of transformers' GPT-2 as wide and deep, MLP 4 d, and how many parameters it has.

    Autocast to bfloat16 where our recipe computes in it, scaled-dot-product attention, no dropout, fused AdamW,
    clipping: one step at our recipe's batch.
    """
    import torch

    model = _transformers_gpt2(config, training.seq_len).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.peak_lr, fused=True)
    generator = torch.Generator(device).manual_seed(0)
    tokens = torch.randint(
        config.vocab_size, (training.batch_size, training.seq_len), device=device, generator=generator
    )
    narrow = training.compute_dtype == "bfloat16"

    def loss_of(tokens):
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=narrow):
            return model(tokens, labels=tokens).loss

    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)

    def step() -> float:
        loss = loss_of(tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
        optimizer.step()
        return loss.item()

    return step, sum(parameter.numel() for parameter in model.parameters())


def _transformers_gpt2(config: ModelConfig, positions: int) -> Any:
    transformers = _transformers()
    shape = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=positions, n_embd=config.d_model, n_layer=config.n_layers,
        n_head=max(1, config.d_model // 64), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(shape)


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise NotRun("transformers is not installed; pip install 'liquidnet-dual[bench]'") from None
    # Its remarks on token ids and slow paths are no affair of a table; the row's name tells of the slow path.
    transformers.logging.set_verbosity_error()
    return transformers


def mamba(config: ModelConfig) -> Any:
    """transformers' Mamba as wide, with as many layers as bring it nearest to our number of parameters.

    Without mamba-ssm's kernels, which need a GPU, its scan is a Python loop over time.
    """
    import torch

    transformers = _transformers()
    wanted, tried = num_parameters(config), {}
    for layers in range(1, 4 * config.n_layers):
        shape = transformers.MambaConfig(
            vocab_size=config.vocab_size, hidden_size=config.d_model, num_hidden_layers=layers
        )
        with torch.device("meta"):
            found = transformers.MambaForCausalLM(shape)
        tried[layers] = sum(parameter.numel() for parameter in found.parameters())
    layers = min(tried, key=lambda layers: abs(tried[layers] - wanted))
    shape = transformers.MambaConfig(vocab_size=config.vocab_size, hidden_size=config.d_model, num_hidden_layers=layers)
    return transformers.MambaForCausalLM(shape)


def mamba_gradients(config: ModelConfig, length: int) -> tuple[Call, int]:
    """Forward and backward of one row of transformers' Mamba, no optimizer, and how many parameters it has."""
    import torch

    model = mamba(config).train()
    tokens = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))

    def both() -> None:
        model.zero_grad(set_to_none=True)
        model(tokens, labels=tokens, use_cache=False).loss.backward()

    return both, sum(parameter.numel() for parameter in model.parameters())


def _generating(make: Callable[..., Any], given: str) -> Callable[[ModelConfig, int, int], Call]:
    """(model, tokens of context, tokens) -> a call that writes so many tokens; `given` is what carries the past."""

    def decoder(config: ModelConfig, context: int, tokens: int) -> Call:
        import copy

        import torch

        model = make(config, context + tokens).eval()
        prompt = torch.randint(16, (1, context), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            past = model(prompt, use_cache=True)[given]
        one = torch.zeros((1, 1), dtype=torch.long)

        @torch.inference_mode()
        def call() -> None:
            # What carries the past grows, or is written over.
            carried = copy.deepcopy(past)
            for place in range(context, context + tokens):
                extra = {"cache_position": torch.tensor([place])} if given == "cache_params" else {}
                carried = model(one, use_cache=True, **{given: carried}, **extra)[given]

        return call

    return decoder


DECODERS = {
    "GPT-2": _generating(_transformers_gpt2, "past_key_values"),
    "Mamba": _generating(lambda config, _: mamba(config), "cache_params"),
}
