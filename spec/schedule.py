"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from spec.config import TrainingConfig


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Linear warm-up, then a cosine, or a stable rate and a decay, to floor = `final_lr_fraction * peak_lr`.

        warm-up  lr = peak (step + 1) / (warmup + 1)                            step < warmup
        cosine   lr = floor + (peak - floor) (1 + cos(pi progress)) / 2         progress in [0, 1] over the other steps
        wsd      lr = peak                                                      step < steps - decay
                 lr = floor + (peak - floor) (1 - progress)                     the last `decay` steps, linear
                 lr = floor + (peak - floor) (1 - sqrt(progress))               the last `decay` steps, sqrt
                 progress = (step + 1 - (steps - decay)) / decay                1 / decay, 2 / decay, ..., 1

    The first step has a rate above 0, the last one the floor. No rate of a wsd schedule depends on what is to come
    before its decay begins: a stable run can go on for ever, and be decayed from any step of it.

    Sources: a warm-up that grows by the same amount each step, Goyal et al. 2017, section 2.2; one cycle without
    restarts of SGDR, Loshchilov and Hutter 2017, equation 5; warm-up, stable, decay: Hu et al. 2024, "MiniCPM",
    section 4; a linear decay, in place of their exponential one, and 1 - sqrt: Haegele et al. 2024, "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations".

    Args:
        step: optimizer steps already taken, from 0; beyond the schedule the floor holds.
        training: peak_lr, warmup_steps, steps, final_lr_fraction, schedule, decay_steps and decay_shape.
    """
    if step < training.warmup_steps:
        return training.peak_lr * (step + 1) / (training.warmup_steps + 1)
    floor = training.peak_lr * training.final_lr_fraction
    if training.schedule == "wsd":
        return _stable_then_decay(step, training, floor)
    span = max(training.steps - 1 - training.warmup_steps, 1)
    progress = min((step - training.warmup_steps) / span, 1.0)
    return floor + (training.peak_lr - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _stable_then_decay(step: int, training: TrainingConfig, floor: float) -> float:
    start = training.decay_start
    if step < start:
        # As it was given: floor + (peak - floor) may differ from peak in the last bit.
        return training.peak_lr
    progress = min((step + 1 - start) / (training.steps - start), 1.0)
    fallen = math.sqrt(progress) if training.decay_shape == "sqrt" else progress
    return floor + (training.peak_lr - floor) * (1.0 - fallen)
