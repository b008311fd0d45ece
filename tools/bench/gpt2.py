"""GPT-2 as nanoGPT trains it, the peer that `liquidnet bench` trains and decodes beside ours in the same run.

Written from the published architecture (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"):
learned positions, pre-LayerNorm, one product for query, key and value, causal attention, an MLP of four times the
width with GELU, a read-out tied to the embedding. As nanoGPT has it: no biases, no dropout, AdamW with betas 0.9 and
0.99 that decays matrices alone, gradients clipped at norm 1, cross-entropy over all positions at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spec.config import ModelConfig
from tools.bench.timer import Call

PEAK_LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0


@dataclass(frozen=True)
class Shape:
    """Vocabulary, width, layers, heads, and how many positions it has learned."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    positions: int


def equal_to(config: ModelConfig, positions: int) -> Shape:
    """As wide and deep as a LiquidNet, heads of 64 (of 32 where it is narrow, as nanoGPT's smallest)."""
    heads = max(1, config.d_model // (64 if config.d_model >= 256 else 32))
    return Shape(config.vocab_size, config.d_model, config.n_layers, heads, positions)


class Block(nn.Module):
    """x += Attention(LayerNorm(x)); x += W_2 gelu(W_1 LayerNorm(x))."""

    def __init__(self, shape: Shape):
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
    """tokens [b, t] -> logits of the next token [b, t, v]."""

    def __init__(self, shape: Shape, seed: int = 0):
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
        """What is read out, [b, t, d]; `cache` [l, 2, b, heads, positions, d / heads] of the tokens before `start`."""
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

    AdamW is the fused one, which is several times faster on a processor than the loop that nanoGPT takes there: the
    peer at its best.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=BETAS, fused=True)
    text = torch.from_numpy(text_bt.astype(np.int64))
    tokens, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    loss_of = torch.compile(model.loss, dynamic=False) if compiled else model.loss

    def step() -> float:
        loss = loss_of(tokens, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
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
