"""AdamW with clipping, in the order of operations that both backends follow.

One step at learning rate lr, counted t = 1, 2, ...; `spec.reference.optimizers` computes it in float64:

    norm  = sqrt(sum over all parameters of |g|^2)
    g     = g * min(1, grad_clip / norm)                        grad_clip = 0: unchanged
    m     = beta1 m + (1 - beta1) g                             first moment
    s     = beta2 s + (1 - beta2) g^2                           second moment
    m^    = m / (1 - beta1^t);  s^ = s / (1 - beta2^t)
    theta = theta - lr (m^ / (sqrt(s^) + adam_eps) + weight_decay theta)

Weight decay applies to the rows of the parameter table marked so.

Source: Loshchilov and Hutter 2019, algorithm 2, where lr stands before the decay too, as in torch.optim.AdamW and
optax.adamw; the moments and their bias correction are Adam's, Kingma and Ba 2015, algorithm 1. Clipping: Pascanu,
Mikolov and Bengio 2013, algorithm 1; torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm, which is not done here.
"""

from __future__ import annotations

from spec.config import ModelConfig
from spec.parameters import parameter_table

MOMENTS = ("first_moment", "second_moment")


def decayed_paths(config: ModelConfig) -> frozenset[str]:
    """Paths of the parameters that weight decay applies to."""
    return frozenset(row.path for row in parameter_table(config) if row.weight_decay)
