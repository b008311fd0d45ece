"""The flags of `liquidnet train` for the mixers' own fields: one for each, typed, told, and refused where it is not."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, get_args

import pytest

from spec.config import SHARED_FIELDS, ModelConfig
from spec.mixers import families
from spec.mixers.base import MixerFamily
from spec.presets import preset
from tools.cli import backends
from tools.cli.main import main, parse
from tools.training import mixer_flags as flags
from tools.training.mixer_flags import mixer_sizes

HERE = ("train", backends.default(), "--data", "data", "--out", "run")
OWN = {name: [x.name for x in fields(one.Config) if x.name not in SHARED_FIELDS] for name, one in families().items()}


def sizes(*given: str, name: str = "nano") -> dict[str, object]:
    return mixer_sizes(parse((*HERE, *given)), preset(name))


@pytest.fixture
def told(capsys) -> str:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_every_field_of_a_family_is_a_flag_that_says_whose_it_is(told) -> None:
    assert any(OWN.values())
    for name, own in OWN.items():
        for one in own:
            assert re.search(rf"--(mixer\.)?{one.replace('_', '-')} \{{.* {families()[name].title}: ", told), one
    assert not re.search(r"--(vocab-size|max-seq-len|norm-eps)\b", told)


def test_a_field_takes_what_its_type_says(refused) -> None:
    given = sizes("--d-state", "6", "--state", "dense", "--exploration-rate", "1e-3", name="ssm-nano")
    assert given == {"d_state": 6, "state": "dense", "exploration_rate": 1e-3}
    # Zero is a value.
    assert sizes("--exploration-rate", "0", name="ssm-nano") == {"exploration_rate": 0.0}
    assert "--state takes one of dense, diagonal, got 'dens'; did you mean" in refused(*HERE, "--state", "dens")
    assert "--gate-blocks takes a whole number, got '2.5'" in refused(*HERE, "--gate-blocks", "2.5")
    assert "there is no flag --gate-block; did you mean '--gate-blocks'?" in refused(*HERE, "--gate-block", "2")


def test_a_flag_of_another_family_is_refused_with_all_that_have_it(small_data, refused, tmp_path) -> None:
    command = ("train", backends.default(), "--data", str(small_data), "--out", str(tmp_path / "run"))
    message = refused(*command, "--d-state", "3")
    owners = [one for one in families().values() if "d_state" in OWN[one.name]]
    assert len(owners) > 1 and message.count("\n") == 1 and not (tmp_path / "run").exists()
    whose = " or ".join(f"{one.article} {one.title}'s" for one in owners)
    presets = " or ".join(next(iter(one.presets)) for one in owners)
    assert f"--d-state is {whose}; leave it out, or choose --preset {presets}" in message


@dataclass(frozen=True)
class OtherConfig(ModelConfig):
    """Shape of another model.

    Args:
        vocab_size, d_model, d_ff, n_layers, max_seq_len, norm_eps: as in ModelConfig.
        bidirectional, gated: whether it reads
            both ways.
        method: how.
        kernel: an object.

    Raises:
        ValueError: never.
    """

    vocab_size: int = 5
    d_model: int = 4
    d_ff: int = 4
    n_layers: int = 1
    max_seq_len: int = 4
    norm_eps: float = 1e-6
    bidirectional: bool = False
    gated: bool | None = None
    widths: tuple[int, ...] = (1, 2)
    method: Literal["fast", "slow"] = "fast"
    eta: str = ""
    run: int = 0
    mixer_run: int = 0
    kernel: object = field(default_factory=object)

    family: ClassVar[str] = "other"


class OtherFamily(MixerFamily[OtherConfig]):
    name, title, article, Config = "other", "Other", "an", OtherConfig
    presets: ClassVar = {"other-nano": None}
    parameters = state_size = forward = adjoint = each_alone = lambda *_: None


def test_a_family_from_outside_has_flags_of_any_plain_type(monkeypatch) -> None:
    """Truth values, several numbers, choices, a name that is the command's own; and a type that another family has."""
    monkeypatch.setattr(flags, "families", lambda: {**families(), "other": OtherFamily()})

    @dataclass(frozen=True)
    @flags.with_mixer_flags
    class Command:
        method: str = "auto"
        """How."""

        def run(self) -> str:
            return "ran"

    import tyro

    line = "--bidirectional True --widths 3 4 5 --mixer.method slow --eta high --method parallel"
    command = tyro.cli(Command, args=line.split())
    given = {"bidirectional": True, "widths": (3, 4, 5), "method": "slow", "eta": "high"}
    assert command.method == "parallel" and mixer_sizes(command, OtherConfig()) == given
    assert tyro.cli(Command, args=["--eta", "0.25"]).eta == 0.25
    assert not mixer_sizes(tyro.cli(Command, args=[]), OtherConfig())
    found = {entry.metadata["mixer"].field: entry.metadata["mixer"] for entry in fields(Command) if entry.metadata}
    command = tyro.cli(Command, args=["--mixer.run", "3", "--mixer-run", "4"])
    assert command.run() == "ran" and mixer_sizes(command, OtherConfig()) == {"run": 3, "mixer_run": 4}
    assert found["gated"].help == "Other: whether it reads both ways." and "kernel" not in found
    assert found["eta"].help.count(": ") == 2 and set(get_args(found["eta"].hint)) == {float, str}
    command = tyro.cli(Command, args=["--mixer.method", "slow"])
    with pytest.raises(ValueError, match=r"^--mixer\.method is an Other's; .* --preset other-nano$"):
        mixer_sizes(command, preset("nano"))
