"""A mixer of anybody's, as an installed package: a good one is proved, one that is wrong is refused in a line.

Every variant of examples/my_mixer is a package of its own in one place, all of them installed at once: one that is
wrong takes nothing else with it.
"""

from __future__ import annotations

import json
import os
import pkgutil
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from parity.proof import adapters, operations
from spec.mixers import RESERVED_NAMES, families, registry
from spec.presets import preset
from tools.data.stories import stories

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "my_mixer" / "my_mixer"
BOTH = all(adapters.missing(name) is None for name in adapters.FRAMEWORKS)


class Variant(NamedTuple):
    """The example with one piece of text in one file replaced.

    Args:
        file: `spec`, `torch_impl` or `jax_impl`.
        old, new: what is replaced, and by what; NAME stands for the variant's name.
        told: the beginning of what is said of it, or a part of it; NAME stands for the variant's name.
        entry: the entry point's name, where it is not the variant's.
    """

    file: str
    old: str
    new: str
    told: str
    entry: str = ""


GATES_BODY = "value_btd, p_btd, _ = np.split(pre_btx, 3, axis=-1)\n"
READ_OUT = "return sigmoid(gate_btd) * states_btn, (gate_btd, states_btn), {}"
BEFORE = "    def parameters("
FORWARD = """    def forward(self, z_btd, weights, config, state_bn, masks, side):
        return super().forward(z_btd, weights, config, state_bn, masks._replace({}=None), side)

"""
AT_ITS_ENDS = "padding * (np.arange(masks.padding.shape[1]) % max(1, masks.padding.shape[1] - 1) == 0)"
FIRST = next(iter(families()))
REFUSED = {  # by what is said when families are looked for
    "lacks_method": Variant("spec", "def gates_adjoint", "def gates_gradient", "abstract class MyMixerFamily"),
    "raises": Variant("spec", "import numpy as np\n", "import numpy as np\n\nraise OSError('no weather here')\n",
                      "OSError: no weather here"),
    "exits": Variant("spec", "import numpy as np\n", "import numpy as np\n\nraise SystemExit('no licence')\n",
                     "SystemExit: no licence"),
    "method_table": Variant("spec", "", "", "the name scan is taken; rename the entry point", "scan"),
    "presets_listed": Variant("spec", ", presets = MyMixerConfig, PRESETS", ", presets = MyMixerConfig, [1]",
                              "presets of presets_listed.spec.FAMILY is a list; give a dict of"),
    "no_recipe": Variant("spec", '"NAME-nano": Preset(', '"NAME-nano": Preset(None, None) and (',
                         "give Preset(MyMixerConfig(...), TrainingConfig(...))"),
    "no_small_config": Variant("spec", "    moving_average", "    small_config = lambda self: None\n    moving_average",
                               "small_config of no_small_config.spec.FAMILY gives None; give a MyMixerConfig"),
    "name_taken": Variant("spec", "", "", f"the name {FIRST} is taken; rename the entry point", FIRST),
    "preset_taken": Variant("spec", '"NAME-nano": Preset', f'"{next(iter(families()[FIRST].presets))}": Preset',
                            f"preset {next(iter(families()[FIRST].presets))} is already {FIRST}'s; give preset_taken"),
    "is_class": Variant("spec", "FAMILY = MyMixerFamily()", "FAMILY = MyMixerFamily",
                        "and must be an instance of a class below spec.mixers.base.MixerFamily"),
    "narrow": Variant("spec", "open=True)\n", "open=True)\n        require_number('d_ff', self.d_ff, 64, 1e9)\n",
                      "small_config of narrow.spec.FAMILY fails: d_ff must be a number in [64, 1e+09], got 12"),
    "other_name": Variant("spec", 'family: ClassVar[str] = "NAME"', 'family: ClassVar[str] = "mine"',
                          "must agree, got 'other_name', 'other_name' and 'mine'"),
    "no_title": Variant("spec", '"leaky integrator", "NAME"', '"leaky integrator", "scan"',
                        "FAMILY.operation of no_title must be 'no_title', got 'scan'"),
}  # fmt: skip
WRONG = {  # by what `parity.proof.family_checks` says
    "wrong_y": Variant("spec", READ_OUT, READ_OUT.replace("return sigmoid(gate_btd) * states_btn,",
                       "return (sigmoid(gate_btd) * states_btn)[:, :1],"),
                       "the output y has shape (3, 1, 8), expected (3, 6, 8); mend forward"),
    "wrong_state": Variant("spec", "return config.d_model\n", "return config.d_model + 1\n",
                           "the last state has shape (3, 8), expected (3, 9); mend forward, or state_size"),
    "wrong_adjoint": Variant("spec", "rate_btd * sigmoid(-p_btd)", "rate_btd",
                             "by complex steps; differentiate forward again: wrong are those of z, input.weight"),
    "global_generator": Variant("spec", '("d",), zeros, False)', '("d",), normal_of_all, False)',
                                "the initialiser of rate_bias draws from a global generator; draw from the generator"),
    "no_stream": Variant("spec", '("d",), zeros, False)', '("d",), normal_of_nobody, False)',
                         "the initialiser of rate_bias gives other values for the same stream"),
    "wide_init": Variant("spec", '("d",), zeros, False)', '("d",), lambda draw, shape: np.zeros(shape), False)',
                         "the initialiser of rate_bias gives float64 (8,); give float32 (8,)"),
    "sees_the_batch": Variant("spec", GATES_BODY, GATES_BODY + "        value_btd = value_btd - value_btd.mean(0)\n",
                              "sees_the_batch: row 0 alone: y["),
    "sees_the_future": Variant("spec", GATES_BODY, GATES_BODY + "        value_btd = np.roll(value_btd, -1, axis=1)\n",
                               "sees_the_future: y before token 5, which was changed["),
    "no_memory": Variant("spec", READ_OUT, READ_OUT.replace("* states_btn,", "* (states_btn - states_btn[:, :1]),"),
                         "no_memory: the text in two pieces: y["),
    "no_reset": Variant("spec", BEFORE, FORWARD.format("resets") + BEFORE,
                        "no_reset: after a reset: y["),
    "sees_padding": Variant("spec", BEFORE, FORWARD.format("padding") + BEFORE,
                            "sees_padding: another padded token: y["),
    "wrong_arity": Variant("spec", BEFORE, "    def of_layer(self, config, side, layer, more=None):\n"
                           "        return super().of_layer(config, side, layer)\n\n" + BEFORE,
                           ".of_layer takes (config, side, layer, more); it is called with (config, side, layer)"),
    "list_for_tuple": Variant("spec", 'family: ClassVar[str] = "NAME"',
                              'pair: tuple = (1, 2)\n    family: ClassVar[str] = "NAME"',
                              "MyMixerConfig does not come back from its JSON"),
    "sees_padding_inside": Variant("spec", BEFORE, FORWARD.replace("{}=None", "padding=None if masks.padding is None "
                                   f"else masks.{AT_ITS_ENDS}") + BEFORE,
                                   "sees_padding_inside: another padded token: y["),
    "enters_nowhere": Variant("spec", 'enters = {"mixer.rate_bias": "mixer.gated"}', "enters = {}",
                              "no activation of enters_nowhere is known to take blocks.0.mixer.rate_bias"),
    "other_list": Variant("spec", "    moving_average", '    activations = ("input", "output")\n    moving_average',
                          "forward of other_list gives the activations input, gated, output; give those listed"),
    "torch_lacks": Variant("torch_impl", "self.rate_bias = nn.Parameter(torch", "self.rate_bias = (torch",
                           "torch: torch_lacks.torch_impl.Mixer lacks rate_bias; give it those of torch_lacks's"),
    "jax_has": Variant("jax_impl", "        self.max_rate", "        self.spare = nnx.Param(jnp.zeros(2))\n"
                       "        self.max_rate", "jax: jax_has.jax_impl.Mixer has spare besides"),
    "torch_shape": Variant("torch_impl", "torch.zeros(config.d_model,", "torch.zeros(1, config.d_model,",
                           "torch: the parameter rate_bias has shape (1, 8), expected (8,)"),
    "torch_batch": Variant("torch_impl", "* value\n", "* (value - value.mean(0))\n",
                           "torch: the text: logits["),
    "torch_no_choice": Variant("torch_impl", "Mixer = MyMixer\n", "Mixer = MyMixer\ndel choose_method\n",
                               "torch_no_choice.torch_impl lacks choose_method; a backend's module of a family has"),
    "torch_exits": Variant("torch_impl", "import torch\n", "import torch\n\nraise SystemExit('no licence')\n",
                           "torch_exits.torch_impl cannot be imported: SystemExit: no licence; mend it"),
    "jax_raises": Variant("jax_impl", "import jax\n", "import jax\nimport no_such_package\n",
                          "jax_raises.jax_impl cannot be imported: ModuleNotFoundError: No module named"),
}  # fmt: skip
MORE = """
def normal_of_all(draw, shape):
    return np.random.standard_normal(shape).astype(np.float32)


def normal_of_nobody(draw, shape):
    return np.random.default_rng().standard_normal(shape).astype(np.float32)


PRESETS = {"""

ASK = """
import json, sys
import fine.spec  # before any of this project
from parity.proof import adapters, family_checks
from spec.mixers import registry, unusable
from tools.doctor import outside

if __name__ == "__main__":
    wrong, twins = json.loads(sys.argv[1]), [name for name in adapters.FRAMEWORKS if not adapters.missing(name)]
    messages = {}
    for name, backend in wrong.items():
        outcomes = family_checks.run(name, [backend] if backend else [])
        messages[name] = [one.message for one in outcomes if one.message]
    print(json.dumps({"broken": registry().broken, "known": [*registry().families], "messages": messages,
                      "doctor": outside()}))
"""


def install(place: Path, name: str, variant: Variant | None = None) -> None:
    """The example as a package of another name, its entry point beside it as an installer leaves it."""
    (place / name).mkdir(parents=True)
    for path in EXAMPLE.glob("*.py"):
        text = path.read_text("utf-8").replace("my_mixer", name).replace("my-mixer", name)
        if variant is not None and path.stem == variant.file:
            old, new = (part.replace("NAME", name) for part in (variant.old, variant.new))
            assert old in text, (name, old)
            text = text.replace(old, new, 1).replace("\nPRESETS = {", MORE)
        (place / name / path.name).write_text(text, "utf-8")
    entry = variant.entry if variant is not None and variant.entry else name
    written = place / f"{name}-0.1.dist-info"
    written.mkdir()
    (written / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1\n")
    (written / "entry_points.txt").write_text(f"[liquidnet.mixers]\n{entry} = {name}\n")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    """What one process says of all variants."""
    if not BOTH:
        pytest.skip("needs both backends")
    place = tmp_path_factory.mktemp("installed")
    install(place, "fine")
    for name, variant in {**REFUSED, **WRONG}.items():
        install(place, name, variant)
    (place / "ask.py").write_text(ASK)
    wrong = {name: one.file.split("_")[0].replace("spec", "") for name, one in WRONG.items()}
    paths = os.pathsep.join([str(place), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "ask.py", json.dumps({**wrong, "fine": ""})], cwd=place, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout)


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_family_that_cannot_be_used_is_refused_in_a_line(found, name) -> None:
    told = found["broken"][REFUSED[name].entry or name]
    assert REFUSED[name].told in told and "\n" not in told


@pytest.mark.parametrize("name", list(WRONG))
def test_a_family_that_is_wrong_is_told_where(found, name) -> None:
    """The line names the tensor, its worst position, the parameter or the function, and what to do."""
    told = found["messages"][name]
    assert any(WRONG[name].told in line for line in told) and all("\n" not in line for line in told), told


def test_one_that_is_wrong_takes_nothing_else_with_it(found) -> None:
    assert found["messages"]["fine"] == [] and {*families(), "fine", *WRONG} == {*found["known"]}


def test_names_of_other_tables_are_not_free() -> None:
    """A family of such a name would stand in the place of methods or proofs that are not its own."""
    modules = {name for _, name, _ in pkgutil.iter_modules(operations.__path__)}
    methods = {name for backend in adapters.FRAMEWORKS if not adapters.missing(backend)
               for name in adapters.load(backend).METHODS}  # fmt: skip
    assert (modules | methods) - {*families()} <= {*RESERVED_NAMES}


def test_a_preset_that_is_unknown_may_be_of_a_family_that_cannot_be_used(monkeypatch) -> None:
    broken = registry()._replace(broken={"mine": "OSError: no weather here"})
    monkeypatch.setattr("spec.presets.registry", lambda: broken)
    with pytest.raises(
        ValueError, match=r"'mine-nano'; choose one of nano.* 'mine' cannot be used: OSError: no weather"
    ):
        preset("mine-nano")


def test_doctor_lists_families_from_outside(found) -> None:
    rows = {row["name"]: row for row in found["doctor"]}
    assert set(rows) == {"fine", *WRONG, *(one.entry or name for name, one in REFUSED.items())}
    assert rows["fine"] == {"name": "fine", "package": "fine", "problems": []}
    assert rows["raises"]["problems"] == ["OSError: no weather here"]
    assert rows["torch_no_choice"]["problems"][0].startswith("torch: torch_no_choice.torch_impl lacks choose_method")
    assert rows["jax_raises"]["problems"][0].startswith("jax: jax_raises.jax_impl cannot be imported")


AS_A_USER = """
prepare --text story.txt --tokenizer byte --out data
train torch --preset my-mixer-nano --d-model 16 --d-ff 24 --n-layers 2 --data data --out run --steps 6 --stop-at 3
train jax --data data --out run --resume
evaluate --checkpoint run --data data
generate --checkpoint run --prompt "Once upon a time" --max-tokens 8
convert run run.pt
convert run.pt run.msgpack
convert run.msgpack checkpoint
compare torch:run jax:run
parity --family my_mixer --draws 10 --report proof
"""


@pytest.mark.long
def test_an_installed_mixer_is_trained_moved_and_proved(tmp_path) -> None:
    """The wheels of this project and of examples/my_mixer in a place of their own, far from the sources."""
    if not BOTH:
        pytest.skip("needs both backends")
    wheels, place = tmp_path / "wheels", tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "--quiet"]
    sources = [str(ROOT), str(EXAMPLE.parent)]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), *sources], check=True)
    found = sorted(map(str, wheels.glob("*.whl")))
    assert len(found) == 2
    subprocess.run([*pip, "install", "--no-deps", "--target", str(place), *found], check=True)
    (tmp_path / "story.txt").write_text("<|endoftext|>".join(stories(60, seed=5)))
    environment = {**os.environ, "PYTHONPATH": str(place)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    where = run(sys.executable, "-c", "import spec, my_mixer; print(spec.__file__, my_mixer.__file__)").stdout.split()
    assert len(where) == 2 and all(path.startswith(str(place)) for path in where), where
    liquidnet = str(place / "bin" / "liquidnet")
    for line in AS_A_USER.strip().splitlines():
        ended = run(liquidnet, *shlex.split(line))
        assert ended.returncode == 0, f"{line}\n{ended.stdout[-2000:]}{ended.stderr[-4000:]}"
    proof = json.loads((tmp_path / "proof" / "report.json").read_text())
    assert proof["passed"] and {row["backend"] for row in proof["rows"]} == set(adapters.FRAMEWORKS)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "my_mixer" in json.dumps(config)
    shutil.copy(EXAMPLE.parent / "test_my_mixer.py", tmp_path)
    ended = run(sys.executable, "-m", "pytest", "-q", "test_my_mixer.py")
    assert ended.returncode == 0 and "22 passed" in ended.stdout, ended.stdout[-4000:]
    ended = run(liquidnet, "train", "torch", "--preset", "my-mixer-nan", "--data", "data", "--out", "other")
    assert ended.returncode == 2 and "did you mean 'my-mixer-nano'" in ended.stderr
