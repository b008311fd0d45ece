"""Faults in the Liquid SSM: HiPPO, reference, clock, solve, both methods and their adjoints, and what compares two."""

from parity.suite.mutants.mutant import Mutant

HIPPO = ("parity/tests/model/test_liquid_ssm_hippo.py", "-k", "every_entry or frequencies")
GRADIENTS = ("parity/tests/model/test_liquid_ssm.py", "-k", "gradients_of_the_layer and not 16")
SOLVE = ("parity/tests/model/test_liquid_ssm_stability.py", "-k", "the_solve")
NOISE = ("parity/tests/model/test_liquid_ssm_model.py", "-k", "noise_is_that_of_the_sample")
TORCH_STEPPED = ("parity/tests/ops/test_operations.py", "-k", "diagonal_states and torch and sequential and float64")
TORCH_PARALLEL = ("parity/tests/ops/test_operations.py", "-k", "diagonal_states and torch and parallel and float64")
TORCH_DENSE = ("parity/tests/ops/test_operations.py", "-k", "dense_states and torch and float64")
TORCH_METHODS = ("parity/tests/model/test_liquid_ssm_methods.py", "-k", "torch and did_not_converge")
TORCH_TRACE = ("parity/tests/cli/test_compare_liquid_ssm.py", "-k", "a_trace and torch")
JAX_STEPPED = ("parity/tests/ops/test_operations.py", "-k", "diagonal_states and jax and sequential and float32")
JAX_DENSE = ("parity/tests/model/test_liquid_ssm_methods.py", "-k", "jax and large and dense and 64")
JAX_REPORT = ("parity/tests/model/test_liquid_ssm_methods.py", "-k", "jax and reports")
JAX_METHODS = ("parity/tests/model/test_liquid_ssm_methods.py", "-k", "jax and did_not_converge")
SHOWS_FIRST = ("parity/tests/cli/test_compare_liquid_ssm.py", "-k", "shows_first and diagonal")
REFUSED = ("parity/tests/cli/test_compare_liquid_ssm.py", "-k", "cannot_be_compared")

LIQUID_SSM = (
    Mutant(
        "hippo: the lower part of LegS with the printed sign",
        "spec/mixers/liquid_ssm/hippo.py",
        'return -1.0 if hippo == "legs" else 1.0',
        "return 1.0",
        HIPPO,
    ),
    Mutant(
        "hippo: the diagonal of LegS is 2 i + 1",
        "spec/mixers/liquid_ssm/hippo.py",
        'return np.arange(n) + 1.0 if hippo == "legs" else 2.0 * np.arange(n) + 1.0',
        "return 2.0 * np.arange(n) + 1.0",
        HIPPO,
    ),
    Mutant(
        "hippo: frequencies of q q^T in place of its half",
        "spec/mixers/liquid_ssm/hippo.py",
        "np.tril(np.outer(legs_factor(n), legs_factor(n)), -1) / 2.0",
        "np.tril(np.outer(legs_factor(n), legs_factor(n)), -1)",
        HIPPO,
    ),
    Mutant(
        "liquid ssm reference: target_dt is no limit",
        "spec/mixers/liquid_ssm/reference.py",
        "dt = np.where(set_by_content, of_content, config.target_dt)",
        "dt = of_content",
        GRADIENTS,
    ),
    Mutant(
        "liquid ssm reference: nothing flows back through the least time constant",
        "spec/mixers/liquid_ssm/reference.py",
        "    tau_gradient = tau_gradient + np.where(of.fastest, dt_gradient / STEPS_A_TIME_CONSTANT, 0.0)\n",
        "",
        GRADIENTS,
    ),
    Mutant(
        "liquid ssm reference: the gradient of dt without the gap",
        "spec/mixers/liquid_ssm/reference.py",
        "    dt_gradient = dt_gradient if gaps is None else dt_gradient * gaps[..., None]\n",
        "",
        GRADIENTS,
    ),
    Mutant(
        "liquid ssm reference: 1 / tau lets a state grow",
        "spec/mixers/liquid_ssm/reference.py",
        "m = 1.0 + dt * (1.0 / tau + scale * scale * legs_rates(n, config.hippo))",
        "m = 1.0 + dt * (-1.0 / tau + scale * scale * legs_rates(n, config.hippo))",
        SOLVE,
    ),
    Mutant(
        "exploration noise keyed without its sample",
        "spec/mixers/liquid_ssm/noise.py",
        'f"exploration {sample}"',
        '"exploration"',
        NOISE,
    ),
    Mutant(
        "torch: a gap counts before target_dt limits the step",
        "torch_impl/mixers/liquid_ssm/dynamics.py",
        "    dt = of_content.clamp(max=config.target_dt)\n"
        "    if inputs.gaps is not None:\n"
        "        dt = dt * inputs.gaps[..., None]\n",
        "    dt = of_content if inputs.gaps is None else of_content * inputs.gaps[..., None]\n"
        "    dt = dt.clamp(max=config.target_dt)\n",
        TORCH_STEPPED,
    ),
    Mutant(
        "torch: eta is missing in the gradient of the content",
        "torch_impl/mixers/liquid_ssm/dynamics.py",
        "of.log_tau.exp() * config.eta * (1.0 - now.content * now.content)",
        "of.log_tau.exp() * (1.0 - now.content * now.content)",
        TORCH_STEPPED,
    ),
    Mutant(
        "torch: the gradient of log_scale lacks the factor 2 of s^2",
        "torch_impl/mixers/liquid_ssm/dynamics.py",
        "-dt * (2.0 * self.p * (y * x)",
        "-dt * (self.p * (y * x)",
        TORCH_DENSE,
    ),
    Mutant(
        "torch: parallel begins from a zero state",
        "torch_impl/mixers/liquid_ssm/solvers.py",
        "drive, as_complex(state_bn)))",
        "drive, torch.zeros_like(as_complex(state_bn))))",
        TORCH_PARALLEL,
    ),
    Mutant(
        "torch: the clock of the first token after a reset knows the state before it",
        "torch_impl/mixers/liquid_ssm/solvers.py",
        "return inputs.forget(torch.cat([state_bn[:, None], states_btn[:, :-1]], dim=1))",
        "return torch.cat([state_bn[:, None], states_btn[:, :-1]], dim=1)",
        TORCH_PARALLEL,
    ),
    Mutant(
        "torch: what the clock passes on arrives at its own step",
        "torch_impl/mixers/liquid_ssm/solvers.py",
        "torch.cat([by_clock[:, 1:], torch.zeros_like(by_clock[:, :1])], dim=1)",
        "by_clock",
        TORCH_PARALLEL,
    ),
    Mutant(
        "torch: auto keeps what did not settle",
        "torch_impl/mixers/liquid_ssm/__init__.py",
        '        solved = METHODS["sequential"][which](*given)\n',
        "",
        TORCH_METHODS,
    ),
    Mutant(
        "jax: the transposed solve goes from the first row down",
        "jax_impl/mixers/liquid_ssm/dynamics.py",
        "        if transposed:\n            decay, drive = jnp.flip(decay, -1), jnp.flip(drive, -1)\n"
        "        sums = chunked(decay[..., None], drive[..., None], jnp.zeros_like(r[..., :1]))[..., 0]\n"
        "        before = _later(sums)\n"
        "        return (r - step * (jnp.flip(before, -1) if transposed else before)) / m",
        "        sums = chunked(decay[..., None], drive[..., None], jnp.zeros_like(r[..., :1]))[..., 0]\n"
        "        return (r - step * _later(sums)) / m",
        JAX_DENSE,
    ),
    Mutant(
        "jax: padding changes the state",
        "jax_impl/mixers/liquid_ssm/solvers.py",
        "state_bn = now.skip(state_bn, matrix.solve(at.tau, at.dt, previous + at.dt * now.drive))",
        "state_bn = matrix.solve(at.tau, at.dt, previous + at.dt * now.drive)",
        JAX_STEPPED,
    ),
    Mutant(
        "jax: parallel settles for a hundredth",
        "jax_impl/mixers/liquid_ssm/solvers.py",
        "enough = _ROUNDINGS * float(kind.eps)",
        "enough = 1e-2",
        JAX_REPORT,
    ),
    Mutant(
        "jax: noise is not multiplied by the exploration rate",
        "jax_impl/mixers/liquid_ssm/__init__.py",
        "drive = drive + config.exploration_rate * noise_btn",
        "drive = drive + noise_btn",
        JAX_STEPPED,
    ),
    Mutant(
        "jax: a named method that did not settle gives its last guess",
        "jax_impl/mixers/liquid_ssm/__init__.py",
        "lambda x: jnp.where(solved.converged, x, jnp.nan), solved[:2])",
        "lambda x: x, solved[:2])",
        JAX_METHODS,
    ),
    Mutant(
        "jax: the layer lacks D u",
        "jax_impl/mixers/liquid_ssm/__init__.py",
        "return self.output(states_btn) + self.skip[...] * x, state",
        "return self.output(states_btn), state",
        ("parity/tests/cli/test_compare_liquid_ssm.py", "-k", "a_trace and jax and dense"),
    ),
    Mutant(
        "compare: a Liquid SSM's layer alone lacks D u",
        "parity/proof/layer_diff/diff.py",
        '        y_btd = y_btd + weights["mixer.skip"] * given["mixer_norm"]\n',
        '        y_btd = y_btd + 0.0 * given["mixer_norm"]\n',
        TORCH_TRACE,
    ),
    Mutant(
        "compare: blames the skip in the output of the mixer's last matrix",
        "parity/proof/layer_diff/weights.py",
        '    "mixer.skip": "mlp_norm",\n',
        '    "mixer.skip": "mixer.output",\n',
        SHOWS_FIRST,
    ),
    Mutant(
        "compare: the kind of state is no part of the shape",
        "tools/compare/command.py",
        '"d_tau", "state")',
        '"d_tau")',
        REFUSED,
    ),
)
