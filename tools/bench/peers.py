"""Other projects' models and kernels doing our job: GPT-2 as nanoGPT trains it, and what is installed of the others.

The GPT-2 is written out here, the peer of every `liquidnet bench`. The others are optional: what makes one imports what
it needs, so ImportError says that it is not installed, and returns something ready to be timed. Where a peer wants
another layout it gets its inputs in that layout for nothing. This file needs torch.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spec.config import ModelConfig, TrainingConfig
from spec.parameters import num_parameters
from tools.bench.timer import Call, NotRun

PEAK_LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0


@dataclass(frozen=True)
class GPT2Shape:
    """Vocabulary, width, layers, heads, and how many positions it has learned."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    positions: int


def equal_to(config: ModelConfig, positions: int) -> GPT2Shape:
    """As wide and deep as a LiquidNet, heads of 64 (of 32 where it is narrow, as nanoGPT's smallest)."""
    heads = max(1, config.d_model // (64 if config.d_model >= 256 else 32))
    return GPT2Shape(config.vocab_size, config.d_model, config.n_layers, heads, positions)


class Block(nn.Module):
    """x += Attention(LayerNorm(x)); x += W_2 gelu(W_1 LayerNorm(x))."""

    def __init__(self, shape: GPT2Shape):
        super().__init__()
        d = shape.d_model
        self.heads = shape.n_heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(d, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor, cache: Tensor | None = None, start: int = 0) -> Tensor:
        """x [b, t, d]; `cache` [2, b, heads, positions, d / heads] holds what came before `start`, and takes in x."""
        b, t, d = x.shape
        query, key, value = (
            part.view(b, t, self.heads, d // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).chunk(3, -1)
        )
        if cache is not None:
            # One token sees all that is kept; several are a prompt, which starts at 0 and masks what follows.
            cache[0, :, :, start : start + t], cache[1, :, :, start : start + t] = key, value
            key, value = cache[:, :, :, : start + t]
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=t > 1)
        x = x + self.out(seen.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT2(nn.Module):
    """tokens [b, t] -> logits of the next token [b, t, v].

    Written from the published architecture (Radford et al. 2019, "Language Models are Unsupervised Multitask
    Learners"): learned positions, pre-LayerNorm, one product for query, key and value, causal attention, an MLP of four
    times the width with GELU, an LM head tied to the embedding. As nanoGPT has it: no biases, no dropout.
    """

    def __init__(self, shape: GPT2Shape, seed: int = 0):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.position = nn.Embedding(shape.positions, shape.d_model)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.n_layers)])
        self.norm = nn.LayerNorm(shape.d_model, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_stream = name.endswith(("out.weight", "down.weight"))
                spread = 0.02 / (2 * shape.n_layers) ** 0.5 if into_stream else 0.02
                nn.init.normal_(parameter, 0.0, spread, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.hidden(tokens), self.embedding.weight)

    def hidden(self, tokens: Tensor, cache: Tensor | None = None, start: int = 0) -> Tensor:
        """The last hidden values [b, t, d]; `cache` [l, 2, b, heads, positions, d / heads] of tokens before `start`."""
        places = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.position(places)
        for i, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[i], start)
        return self.norm(x)

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        return F.cross_entropy(self(tokens).flatten(0, 1), labels.flatten())

    def num_parameters(self) -> int:
        """Without the positions, as nanoGPT counts."""
        return sum(parameter.numel() for parameter in self.parameters()) - self.position.weight.numel()


def train_step(model: GPT2, text_bt: np.ndarray, compiled: bool = False) -> Call:
    """One optimizer step on [b, t + 1] tokens, which returns the loss.

    As nanoGPT trains: AdamW with betas 0.9 and 0.99 that decays matrices alone, gradients clipped at norm 1,
    cross-entropy over all positions at once. AdamW is the fused one, which is several times faster on a processor than
    the loop that nanoGPT takes there: the peer at its best.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=BETAS, fused=True)
    text = torch.from_numpy(text_bt.astype(np.int64))
    tokens, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    loss_of = torch.compile(model.loss, dynamic=False) if compiled else model.loss
    return _optimizer_step(model, lambda: loss_of(tokens, labels), optimizer, CLIP)


def _optimizer_step(
    model: nn.Module, loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer, clip: float
) -> Call:
    def step() -> float:
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


class Decoder:
    """Streams of tokens with a cache of keys and values that is allocated once.

    Args:
        model: read at each step.
        batch: streams.
    """

    def __init__(self, model: GPT2, batch: int = 1):
        s = model.shape
        self.model, self.length = model, 0
        self.cache = torch.zeros(s.n_layers, 2, batch, s.n_heads, s.positions, s.d_model // s.n_heads)

    @torch.inference_mode()
    def __call__(self, tokens_bt: np.ndarray) -> np.ndarray:
        """Take a prompt first, then one token a stream at a time; the logits that follow the last, [b, v]."""
        tokens = torch.from_numpy(np.asarray(tokens_bt, np.int64))
        assert self.length == 0 or tokens.shape[1] == 1
        hidden = self.model.hidden(tokens, self.cache, self.length)
        self.length += tokens.shape[1]
        return F.linear(hidden[:, -1], self.model.embedding.weight).numpy()

    def bytes_a_step(self) -> int:
        """Weights and cache that the next token reads: the whole embedding once, one position, all that is kept."""
        floats = self.model.num_parameters() + self.model.shape.d_model
        kept = self.cache[..., 0, :].numel() * self.length
        return 4 * (floats + kept)


def decoding(decoder: Decoder, tokens: int) -> Call:
    """A call that writes `tokens` tokens a stream from where the decoder is now, every time the same ones."""
    start, batch = decoder.length, decoder.cache.shape[2]
    tokens_bt = np.arange(batch)[:, None] % decoder.model.shape.vocab_size

    def call() -> None:
        decoder.length = start
        for _ in range(tokens):
            decoder(tokens_bt)

    return call


Differentiated = tuple[Callable[..., Tensor], Sequence[Tensor]]
"""A function of tensors, and tensors to call it with, all of them differentiated."""


def _fla(kernel: str, compiled: bool) -> Callable[[Sequence[Tensor], float], Differentiated]:
    """The mixer by flash-linear-attention's HGRN kernels: x = (1 - decay) tanh(value), g = log decay, o sigmoid(gate).

    Gates in torch, bfloat16 between the parts, as the project's own HGRN layer has them.
    """

    def make(inputs: Sequence[Tensor], delta_min: float) -> Differentiated:
        import fla.ops.hgrn

        recurrence = getattr(fla.ops.hgrn, kernel)

        def before(pre_btx: Tensor, decay_bias_d: Tensor) -> tuple[Tensor, Tensor]:
            value_btd, p_btd, _ = pre_btx.chunk(3, dim=-1)
            log_decay_btd = -F.softplus(p_btd.float() + decay_bias_d) - delta_min
            drive_btd = -torch.expm1(log_decay_btd) * torch.tanh(value_btd.float())
            return drive_btd.to(pre_btx.dtype), log_decay_btd.to(pre_btx.dtype)

        def after(states_btd: Tensor, pre_btx: Tensor) -> Tensor:
            return states_btd * torch.sigmoid(pre_btx.chunk(3, dim=-1)[2])

        if compiled:
            before, after = torch.compile(before, dynamic=False), torch.compile(after, dynamic=False)

        def mixer(pre_btx: Tensor, decay_bias_d: Tensor) -> Tensor:
            states_btd, _ = recurrence(*before(pre_btx, decay_bias_d))
            return after(states_btd, pre_btx)

        return mixer, inputs

    return make


def _selective_scan(inputs: Sequence[Tensor], delta_min: float) -> Differentiated:
    """mamba-ssm's selective scan at our width: more work (16 states a channel), channels before time."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    pre_btx = inputs[0].detach()
    b, t, _ = pre_btx.shape
    value, delta, gate = (part.transpose(1, 2).contiguous().requires_grad_() for part in pre_btx.chunk(3, dim=-1))
    generator = torch.Generator(pre_btx.device).manual_seed(0)
    into, out = (
        torch.randn(b, 16, t, device=pre_btx.device, generator=generator).to(pre_btx.dtype).requires_grad_()
        for _ in range(2)
    )
    rates = (-torch.arange(1.0, 17.0, device=pre_btx.device).repeat(value.shape[1], 1)).requires_grad_()

    def mixer(value: Tensor, delta: Tensor, gate: Tensor, rates: Tensor, into: Tensor, out: Tensor) -> Tensor:
        return selective_scan_fn(value, delta, rates, into, out, z=gate, delta_softplus=True)

    return mixer, [value, delta, gate, rates, into, out]


MIXERS: dict[str, Callable[[Sequence[Tensor], float], Differentiated]] = {
    "fla fused_recurrent_hgrn, eager gates": _fla("fused_recurrent_hgrn", False),
    "fla fused_recurrent_hgrn, compiled gates": _fla("fused_recurrent_hgrn", True),
    "fla chunk_hgrn, eager gates": _fla("chunk_hgrn", False),
    "fla chunk_hgrn, compiled gates": _fla("chunk_hgrn", True),
    "mamba-ssm selective_scan, 16 states": _selective_scan,
}
"""By name: (pre-activations [b, t, 3 d] and decay bias [d], the shortest decay) -> what is differentiated."""


def _accelerated(kernel: str) -> Callable[[Sequence[Tensor]], Differentiated]:
    """accelerated-scan, float32, [b, d, t], lengths that are powers of two."""

    def make(inputs: Sequence[Tensor]) -> Differentiated:
        length = inputs[0].shape[1]
        if length & (length - 1):
            raise NotRun(f"lengths must be powers of two, got {length}")
        try:
            scan = importlib.import_module(f"accelerated_scan.{kernel}").scan
        except (OSError, RuntimeError) as error:
            raise NotRun(f"accelerated_scan.{kernel} is installed but its kernel did not build: {error}") from error
        return scan, [given.detach().transpose(1, 2).contiguous().requires_grad_() for given in inputs]

    return make


SCANS: dict[str, Callable[[Sequence[Tensor]], Differentiated]] = {
    "accelerated-scan warp": _accelerated("warp"),
    "accelerated-scan scalar (Triton)": _accelerated("scalar"),
}
"""By name: (decay and drive [b, t, d]) -> what is differentiated."""


def transformers_train_step(
    config: ModelConfig, training: TrainingConfig, device: str, compiled: bool
) -> tuple[Call, int]:
    """A train step of transformers' GPT-2 as wide and deep, MLP 4 d, and how many parameters it has.

    Autocast to bfloat16 where our recipe computes in it, scaled-dot-product attention, no dropout, fused AdamW,
    clipping: one step at our recipe's batch.
    """
    model = _transformers_gpt2(config, training.seq_len).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.peak_lr, fused=True)
    generator = torch.Generator(device).manual_seed(0)
    shape = training.batch_size, training.seq_len
    tokens = torch.randint(config.vocab_size, shape, device=device, generator=generator)
    narrow = training.compute_dtype == "bfloat16"

    def loss_of(tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=narrow):
            return model(tokens, labels=tokens).loss

    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)
    return _optimizer_step(model, lambda: loss_of(tokens), optimizer, training.grad_clip), _count(model)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _transformers_gpt2(config: ModelConfig, positions: int) -> nn.Module:
    transformers = _transformers()
    shape = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=positions, n_embd=config.d_model, n_layer=config.n_layers,
        n_head=max(1, config.d_model // 64), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(shape)


def _transformers() -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError:
        raise NotRun("transformers is not installed; pip install 'liquidnet-dual[bench]'") from None
    # Its remarks on token ids and slow paths are no affair of a table; the row's name tells of the slow path.
    transformers.logging.set_verbosity_error()
    return transformers


def mamba(config: ModelConfig) -> nn.Module:
    """transformers' Mamba as wide, with as many layers as bring it nearest to our number of parameters.

    Without mamba-ssm's kernels, which need a GPU, its scan is a Python loop over time.
    """
    transformers = _transformers()

    def make(layers: int) -> nn.Module:
        shape = transformers.MambaConfig(
            vocab_size=config.vocab_size, hidden_size=config.d_model, num_hidden_layers=layers
        )
        return transformers.MambaForCausalLM(shape)

    def distance(layers: int) -> int:
        with torch.device("meta"):
            return abs(_count(make(layers)) - num_parameters(config))

    return make(min(range(1, 4 * config.n_layers), key=distance))


def mamba_gradients(config: ModelConfig, length: int) -> tuple[Call, int]:
    """Forward and backward of one row of transformers' Mamba, no optimizer, and how many parameters it has."""
    model = mamba(config).train()
    tokens = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))

    def both() -> None:
        model.zero_grad(set_to_none=True)
        model(tokens, labels=tokens, use_cache=False).loss.backward()

    return both, _count(model)


def _generating(make: Callable[[ModelConfig, int], nn.Module], given: str) -> Callable[[ModelConfig, int, int], Call]:
    """(model, tokens of context, tokens) -> a call that writes so many tokens; `given` is what carries the past."""

    def decoder(config: ModelConfig, context: int, tokens: int) -> Call:
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
