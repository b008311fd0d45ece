"""Faults in torch_impl; most have a twin in of_jax.py."""

from parity.suite.mutants.mutant import Mutant

SEQUENTIAL = ("parity/tests/ops/test_operations.py", "-k", "float32 and scan and torch and sequential")
CHUNKED = ("parity/tests/ops/test_operations.py", "-k", "float32 and scan and torch and chunked")
GATES = (
    "parity/tests/ops/test_operations.py",
    "parity/tests/ops/test_gates.py",
    "-k",
    "torch and (gates and float32 or half_life)",
)
GATES_GRADIENT = ("parity/tests/meta/test_mutant_findings.py", "-k", "torch and decay_gate")
MODEL = ("parity/tests/model/test_model.py", "-k", "torch and other_configurations")
REMAT = ("parity/tests/model/test_model.py", "-k", "torch and remat")
ROWS = ("parity/tests/ops/test_operations.py", "-k", "(rms_norm or swiglu) and torch-plain and float32")
CHUNKS = ("parity/tests/model/test_model.py", "-k", "torch and remat and chunked")
OPTIMIZER = ("parity/tests/training/test_optimizer.py", "-k", "torch")
GENERATION = ("parity/tests/generation/test_sampling.py", "-k", "torch and sampled_model")
FILES = ("parity/tests/checkpoint/test_checkpoint_format.py", "-k", "any_format and bfloat16")
ENGINE = ("parity/tests/meta/test_mutant_findings.py", "-k", "torch and engine")
BFLOAT16 = ("parity/tests/meta/test_mutant_findings.py", "-k", "torch and bfloat16")

TORCH = (
    Mutant(
        "torch: the scan drops the initial state",
        "torch_impl/ops/scan/sequential.py",
        "    states_btd = torch.empty_like(drive_btd)\n",
        "    states_btd, state_bd = torch.empty_like(drive_btd), torch.zeros_like(state_bd)\n",
        SEQUENTIAL,
    ),
    Mutant(
        "torch: chunks begin from a zero state",
        "torch_impl/ops/scan/chunked.py",
        "before = [state_bd]",
        "before = [torch.zeros_like(state_bd)]",
        CHUNKED,
    ),
    Mutant(
        "torch: a chunk's product lacks its first decay",
        "torch_impl/ops/scan/chunked.py",
        "product_bkd, end_bkd = decay_bkcd[:, :, 0], drive_bkcd[:, :, 0]",
        "product_bkd, end_bkd = torch.ones_like(drive_bkcd[:, :, 0]), drive_bkcd[:, :, 0]",
        CHUNKED,
    ),
    Mutant(
        "torch: the reversed scan is off by one: decay of the same step",
        "torch_impl/ops/scan/__init__.py",
        "torch.cat([torch.ones_like(state_bd)[:, None], decay_btd[:, 1:].flip(1)], dim=1)",
        "decay_btd.flip(1)",
        SEQUENTIAL,
    ),
    Mutant(
        "torch: the gradient of the initial state is missing",
        "torch_impl/ops/scan/__init__.py",
        "g_btd, decay_btd[:, 0] * g_btd[:, 0]\n",
        "g_btd, torch.zeros_like(state_bd)\n",
        SEQUENTIAL,
    ),
    Mutant(
        "torch: the gradient of the final state is missing",
        "torch_impl/ops/scan/__init__.py",
        "states_gradient_btd.flip(1), final_gradient_bd).flip(1)",
        "states_gradient_btd.flip(1), torch.zeros_like(final_gradient_bd)).flip(1)",
        SEQUENTIAL,
    ),
    Mutant(
        "torch: padding leaks: its drive is added",
        "torch_impl/ops/scan/__init__.py",
        "        drive_btd = drive_btd.masked_fill(padding_bt[..., None], 0.0)\n",
        "",
        SEQUENTIAL,
    ),
    Mutant(
        "torch: a reset one token late",
        "torch_impl/ops/scan/__init__.py",
        "decay_btd.masked_fill(resets_bt[..., None], 0.0)",
        "decay_btd.masked_fill(resets_bt.roll(1, dims=1)[..., None], 0.0)",
        SEQUENTIAL,
    ),
    Mutant(
        "torch: 1 - alpha by subtraction",
        "torch_impl/ops/gated_scan/__init__.py",
        "-math.expm1(-delta_min) + c * open_btd",
        "1.0 - alpha_btd",
        GATES,
    ),
    Mutant(
        "torch: the gates' gradient as y (1 - y)",
        "torch_impl/ops/gated_scan/__init__.py",
        "alpha_btd * open_btd * (fresh_gradient_btd - alpha_gradient_btd)",
        "open_btd * (1.0 - open_btd) * (fresh_gradient_btd - alpha_gradient_btd)",
        GATES_GRADIENT,
    ),
    Mutant(
        "torch: the mixer's fused rows swapped: value | gate | decay",
        "torch_impl/ops/gated_scan/__init__.py",
        "value_btd, p_btd, gate_btd = pre_btx",
        "value_btd, gate_btd, p_btd = pre_btx",
        MODEL,
    ),
    Mutant(
        "torch: the mixer's output matrix is transposed",
        "torch_impl/ops/gated_scan/__init__.py",
        "return self.output(gated_btd), state_bd",
        "return gated_btd @ self.output.weight, state_bd",
        MODEL,
    ),
    Mutant(
        "torch: RMSNorm's eps outside the root",
        "torch_impl/layers.py",
        "x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + eps)",
        "x / ((x * x).mean(dim=-1, keepdim=True).sqrt() + eps)",
        ROWS,
    ),
    Mutant(
        "torch: SwiGLU's rows swapped: up | gate",
        "torch_impl/layers.py",
        "gate_btf, up_btf = pre_bti",
        "up_btf, gate_btf = pre_bti",
        ROWS,
    ),
    Mutant(
        "torch: the MLP without the residual scale",
        "torch_impl/model.py",
        "torch.add(x, self.mlp(self.mlp_norm(x)), alpha=self.scale)",
        "torch.add(x, self.mlp(self.mlp_norm(x)))",
        MODEL,
    ),
    Mutant(
        "torch: final states stacked from the last layer to the first",
        "torch_impl/model.py",
        "last_states.append(last)",
        "last_states.insert(0, last)",
        MODEL,
    ),
    Mutant(
        "torch: recomputed blocks see no masks",
        "torch_impl/model.py",
        "checkpoint(block, *given, use_reentrant=False)",
        "checkpoint(block, *given[:2], None, None, *given[4:], use_reentrant=False)",
        REMAT,
    ),
    Mutant(
        "torch: the loss is a mean over all positions, ignored ones too",
        "torch_impl/model.py",
        "nats / count.clamp(min=1)",
        "nats / labels.numel()",
        MODEL,
    ),
    Mutant(
        "torch: the loss forgets its last chunk where rows do not divide",
        "torch_impl/ops/cross_entropy/__init__.py",
        "    for hidden, labels in zip(hidden_nd.split(rows), labels_n.split(rows), strict=True):\n",
        "    whole = len(labels_n) // rows * rows\n"
        "    for hidden, labels in zip(hidden_nd[:whole].split(rows), labels_n[:whole].split(rows), strict=True):\n",
        CHUNKS,
    ),
    Mutant(
        "torch: logits accumulate in bfloat16",
        "torch_impl/ops/cross_entropy/__init__.py",
        "product(hidden.to(compute).to(hidden.dtype), embedding_vd.to(compute).to(hidden.dtype))",
        "product(hidden.to(compute), embedding_vd.to(compute)).to(hidden.dtype)",
        BFLOAT16,
    ),
    Mutant(
        "torch: weight decay on norms and biases",
        "torch_impl/training/optimizer.py",
        'if path not in decayed], "weight_decay": 0.0}',
        'if path not in decayed], "weight_decay": training.weight_decay}',
        OPTIMIZER,
    ),
    Mutant(
        "torch: clipping scales small gradients up",
        "torch_impl/training/optimizer.py",
        "(grad_clip / norm).clamp(max=1.0)",
        "grad_clip / norm",
        OPTIMIZER,
    ),
    Mutant(
        "torch: the step counter of the bias correction is not carried",
        "torch_impl/training/optimizer.py",
        'state["step"] = torch.tensor(float(step))',
        'state["step"] = torch.tensor(0.0)',
        OPTIMIZER,
    ),
    Mutant(
        "torch: the two moments swapped",
        "torch_impl/training/optimizer.py",
        '("exp_avg", "exp_avg_sq")',
        '("exp_avg_sq", "exp_avg")',
        OPTIMIZER,
    ),
    Mutant(
        "torch: generation forgets the state between tokens",
        "torch_impl/generation.py",
        "dtype=torch.long, device=device), states)",
        "dtype=torch.long, device=device), None)",
        GENERATION,
    ),
    Mutant(
        "torch: bfloat16 widened on save",
        "torch_impl/checkpoint/native.py",
        "return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()",
        "return tensor.float().numpy()",
        FILES,
    ),
    Mutant(
        "torch: gradients of earlier steps are added to",
        "torch_impl/training/engine.py",
        "        self.optimizer.zero_grad(set_to_none=True)\n        loss, last_states",
        "        loss, last_states",
        ENGINE,
    ),
    Mutant(
        "torch: training ignores where documents begin",
        "torch_impl/training/engine.py",
        "self._loss(**to_device(part, self.device), states=state)",
        'self._loss(**{**to_device(part, self.device), "resets": None}, states=state)',
        ENGINE,
    ),
    Mutant(
        "torch: the learning rate is set after the step that it was meant for",
        "torch_impl/training/engine.py",
        '                for group in self.optimizer.param_groups:\n                    group["lr"] = lr\n'
        "                self.optimizer.step()\n",
        "                self.optimizer.step()\n"
        '                for group in self.optimizer.param_groups:\n                    group["lr"] = lr\n',
        ENGINE,
    ),
    Mutant(
        "torch: a loaded run counts its steps from zero",
        "torch_impl/training/engine.py",
        "load_moments(self.model, self.optimizer, moments, step)",
        "load_moments(self.model, self.optimizer, moments, 0)",
        ENGINE,
    ),
)
