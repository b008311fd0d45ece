"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from spec.config import TrainingConfig


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Linear warm-up, then a cosine to `final_lr_fraction * peak_lr`.

        warm-up  lr = peak (step + 1) / (warmup + 1)                            step < warmup
        cosine   lr = floor + (peak - floor) (1 + cos(pi progress)) / 2         progress in [0, 1]

    Source: a warm-up that grows by the same amount each step, Goyal et al. 2017, section 2.2; one cycle without
    restarts of SGDR, Loshchilov and Hutter 2017, equation 5. The first step has a rate above 0, the last one the floor.

    Args:
        step: optimizer steps already taken, from 0; beyond the schedule the floor holds.
        training: peak_lr, warmup_steps, steps and final_lr_fraction.
    """
    if step < training.warmup_steps:
        return training.peak_lr * (step + 1) / (training.warmup_steps + 1)
    span = max(training.steps - 1 - training.warmup_steps, 1)
    progress = min((step - training.warmup_steps) / span, 1.0)
    floor = training.peak_lr * training.final_lr_fraction
    return floor + (training.peak_lr - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
