"""Faults in jax_impl; most have a twin in of_torch.py."""

from parity.suite.mutants.mutant import Mutant

SEQUENTIAL = ("parity/tests/ops/test_operations.py", "-k", "float32 and scan and jax and sequential")
ASSOCIATIVE = ("parity/tests/ops/test_operations.py", "-k", "float32 and scan and jax and associative")
CHUNKED = ("parity/tests/ops/test_operations.py", "-k", "float32 and scan and jax and chunked")
GATES = (
    "parity/tests/ops/test_operations.py",
    "parity/tests/ops/test_gates.py",
    "-k",
    "jax and (gates and float32 or half_life)",
)
GATES_GRADIENT = ("parity/tests/meta/test_mutant_findings.py", "-k", "jax and decay_gate")
MODEL = ("parity/tests/model/test_model.py", "-k", "jax and other_configurations")
REMAT = ("parity/tests/model/test_model.py", "-k", "jax and remat")
CHUNKS = ("parity/tests/model/test_model.py", "-k", "jax and remat and chunked")
OPTIMIZER = ("parity/tests/training/test_optimizer.py", "-k", "jax")
GENERATION = ("parity/tests/meta/test_mutant_findings.py", "-k", "jax and last_position")
FILES = ("parity/tests/meta/test_mutant_findings.py", "-k", "jax and dtype")
ENGINE = ("parity/tests/meta/test_mutant_findings.py", "-k", "jax and engine")
BFLOAT16 = ("parity/tests/meta/test_mutant_findings.py", "-k", "jax and bfloat16")

JAX = (
    Mutant(
        "jax: the scan drops the initial state",
        "jax_impl/ops/scan/sequential.py",
        "start = state_bd.astype(wide), ",
        "start = 0.0 * state_bd.astype(wide), ",
        SEQUENTIAL,
    ),
    Mutant(
        "jax: the combine takes the decay of the earlier step",
        "jax_impl/ops/scan/associative.py",
        "second[0] * first[1] + second[1]",
        "first[0] * first[1] + second[1]",
        ASSOCIATIVE,
    ),
    Mutant(
        "jax: the initial state enters undecayed",
        "jax_impl/ops/scan/associative.py",
        ".add(decay_btd[:, 0] * state_bd)",
        ".add(state_bd)",
        ASSOCIATIVE,
    ),
    Mutant(
        "jax: each chunk begins from the state after it",
        "jax_impl/ops/scan/chunked.py",
        "        return chunk[0] * before_bd + chunk[1], before_bd\n",
        "        after_bd = chunk[0] * before_bd + chunk[1]\n        return after_bd, after_bd\n",
        CHUNKED,
    ),
    Mutant(
        "jax: the reversed scan is off by one: decay of the same step",
        "jax_impl/ops/scan/__init__.py",
        "jnp.concatenate([jnp.ones_like(state_bd)[:, None], jnp.flip(decay_btd[:, 1:], 1)], axis=1)",
        "jnp.flip(decay_btd, 1)",
        SEQUENTIAL,
    ),
    Mutant(
        "jax: the gradient of the initial state is missing",
        "jax_impl/ops/scan/__init__.py",
        "g_btd, decay_btd[:, 0] * g_btd[:, 0]",
        "g_btd, jnp.zeros_like(state_bd)",
        SEQUENTIAL,
    ),
    Mutant(
        "jax: the gradient of the final state is missing",
        "jax_impl/ops/scan/__init__.py",
        "return _adjoint(method)(*saved, *gradients)",
        "return _adjoint(method)(*saved, gradients[0], jnp.zeros_like(gradients[1]))",
        SEQUENTIAL,
    ),
    Mutant(
        "jax: padding leaks: the state decays there",
        "jax_impl/ops/scan/__init__.py",
        "        decay_btd = jnp.where(padding_bt[..., None], 1.0, decay_btd)\n",
        "",
        SEQUENTIAL,
    ),
    Mutant(
        "jax: a reset one token late",
        "jax_impl/ops/scan/__init__.py",
        "jnp.where(resets_bt[..., None], 0.0, decay_btd)",
        "jnp.where(jnp.roll(resets_bt, 1, axis=1)[..., None], 0.0, decay_btd)",
        SEQUENTIAL,
    ),
    Mutant(
        "jax: 1 - alpha by subtraction",
        "jax_impl/ops/gated_scan/__init__.py",
        "return c * jax.nn.sigmoid(-p), -math.expm1(-delta_min) + c * jax.nn.sigmoid(p)",
        "return c * jax.nn.sigmoid(-p), 1.0 - c * jax.nn.sigmoid(-p)",
        GATES,
    ),
    Mutant(
        "jax: the gates' gradient as y (1 - y)",
        "jax_impl/ops/gated_scan/__init__.py",
        "alpha_btd * jax.nn.sigmoid(*primals) * tangents[0]",
        "fresh_btd * (1.0 - fresh_btd) * tangents[0]",
        GATES_GRADIENT,
    ),
    Mutant(
        "jax: the mixer's fused rows swapped: decay | value | gate",
        "jax_impl/ops/gated_scan/__init__.py",
        "value_btd, p_btd, gate_btd = jnp.split",
        "p_btd, value_btd, gate_btd = jnp.split",
        MODEL,
    ),
    Mutant(
        "jax: the mixer's output matrix is transposed",
        "jax_impl/ops/gated_scan/__init__.py",
        "return self.output(gated_btd), state_bd",
        "return gated_btd @ self.output.weight[...], state_bd",
        MODEL,
    ),
    Mutant(
        "jax: RMSNorm's eps outside the root",
        "jax_impl/layers.py",
        "x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + self.eps)",
        "x / (jnp.sqrt((x * x).mean(axis=-1, keepdims=True)) + self.eps)",
        MODEL,
    ),
    Mutant(
        "jax: the mixer without the residual scale",
        "jax_impl/model.py",
        "x = x + self.scale * y_btd",
        "x = x + y_btd",
        MODEL,
    ),
    Mutant(
        "jax: every layer begins from the first layer's state",
        "jax_impl/model.py",
        "enumerate(zip(self.blocks, states, strict=True)):",
        "enumerate(zip(self.blocks, [states[0]] * len(states), strict=True)):",
        MODEL,
    ),
    Mutant(
        "jax: recomputed blocks see no masks",
        "jax_impl/model.py",
        "partial(nnx.remat(Block.__call__), block) if self.remat else block",
        "partial(lambda b, x, s, r, p, *o: nnx.remat(Block.__call__)(b, x, s, None, None, *o), block) "
        "if self.remat else block",
        REMAT,
    ),
    Mutant(
        "jax: rows that fill up the last chunk of the loss are counted",
        "jax_impl/ops/cross_entropy/__init__.py",
        "(0, fill), constant_values=IGNORED_LABEL)",
        "(0, fill))",
        CHUNKS,
    ),
    Mutant(
        "jax: logits accumulate in bfloat16",
        "jax_impl/ops/cross_entropy/__init__.py",
        "    return jnp.matmul(\n"
        '        hidden.astype(compute), embedding_vd.astype(compute).T, precision="highest", '
        "preferred_element_type=hidden.dtype\n    )",
        '    return jnp.matmul(hidden.astype(compute), embedding_vd.astype(compute).T, precision="highest").astype('
        "hidden.dtype)",
        BFLOAT16,
    ),
    Mutant(
        "jax: AdamW's eps inside the root",
        "jax_impl/training/optimizer.py",
        "training.beta2, training.adam_eps)",
        "training.beta2, 0.0, training.adam_eps**2)",
        OPTIMIZER,
    ),
    Mutant(
        "jax: weight decay on norms and biases",
        "jax_impl/training/optimizer.py",
        "{row.path: row.weight_decay for row",
        "{row.path: True for row",
        OPTIMIZER,
    ),
    Mutant(
        "jax: the norm that is told is the one after clipping",
        "jax_impl/training/optimizer.py",
        "for path, gradient in gradients.items()}, norm",
        "for path, gradient in gradients.items()}, norm * scale",
        OPTIMIZER,
    ),
    Mutant(
        "jax: the step counter of the bias correction is not carried",
        "jax_impl/training/optimizer.py",
        "_replace(count=step, **{",
        "_replace(**{",
        OPTIMIZER,
    ),
    Mutant(
        "jax: the two moments swapped",
        "jax_impl/training/optimizer.py",
        '("mu", "nu")',
        '("nu", "mu")',
        OPTIMIZER,
    ),
    Mutant(
        "jax: generation reads out the first position of the prompt",
        "jax_impl/generation.py",
        "read_out(hidden_btd[:, -1],",
        "read_out(hidden_btd[:, 0],",
        GENERATION,
    ),
    Mutant(
        "jax: bfloat16 widened on save",
        "jax_impl/checkpoint/native.py",
        "    return np.array(array)\n",
        "    return np.array(array, np.float32)\n",
        FILES,
    ),
    Mutant(
        "jax: training ignores where documents begin",
        "jax_impl/training/step.py",
        '.loss(**{**batch, "noise": noise}, states=states)',
        '.loss(**{**batch, "noise": noise, "resets": None}, states=states)',
        ENGINE,
    ),
    Mutant(
        "jax: a loaded run trains its initial weights on",
        "jax_impl/training/engine.py",
        "        check_parameters(self.config, parameters)\n        self._take(parameters)\n",
        "        check_parameters(self.config, parameters)\n",
        ENGINE,
    ),
)
