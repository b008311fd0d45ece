"""Named sizes, and the recipe each is trained with by default."""

from __future__ import annotations

from spec.config import LiquidNetConfig, LiquidSSMConfig, ModelConfig, TrainingConfig, require_known

LIQUIDNETS = {
    "nano": LiquidNetConfig(d_model=128, d_ff=344, n_layers=4, max_seq_len=64),
    "tiny": LiquidNetConfig(d_model=192, d_ff=576, n_layers=4, max_seq_len=256),
    "small": LiquidNetConfig(d_model=384, d_ff=1024, n_layers=6, max_seq_len=512),
    "base": LiquidNetConfig(d_model=768, d_ff=2560, n_layers=8, max_seq_len=8192),
}

LIQUID_SSMS = {
    "ssm-nano": LiquidSSMConfig(
        50257, d_model=128, d_ff=344, n_layers=4, max_seq_len=64, d_state=128, state="diagonal"
    ),
    "ssm-small": LiquidSSMConfig(
        50257, d_model=384, d_ff=1024, n_layers=6, max_seq_len=512, d_state=384, state="diagonal"
    ),
}

PRESETS: dict[str, ModelConfig] = {**LIQUIDNETS, **LIQUID_SSMS}

RECIPES = {
    "nano": TrainingConfig(steps=2000, batch_size=12, seq_len=64, peak_lr=3e-3, warmup_steps=100),
    "tiny": TrainingConfig(steps=12_000, batch_size=16, seq_len=256, peak_lr=1e-3, warmup_steps=400),
    "small": TrainingConfig(steps=4069, batch_size=48, seq_len=512, peak_lr=6e-4, warmup_steps=400),
    "base": TrainingConfig(steps=20_000, batch_size=64, seq_len=8192, peak_lr=3e-4, warmup_steps=1000),
    "ssm-nano": TrainingConfig(steps=2000, batch_size=12, seq_len=64, peak_lr=3e-3, warmup_steps=100),
    "ssm-small": TrainingConfig(steps=4069, batch_size=48, seq_len=512, peak_lr=6e-4, warmup_steps=400),
}


def preset(name: str) -> ModelConfig:
    """The configuration of a preset; raises ValueError with the nearest name for an unknown one."""
    require_known("preset", name, PRESETS)
    return PRESETS[name]
