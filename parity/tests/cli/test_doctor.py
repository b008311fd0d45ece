"""The self-test before training and `liquidnet doctor`: what fails is said loudly and not used."""

from __future__ import annotations

import json

import pytest

from parity.proof import adapters as proved
from parity.proof import bounds
from spec import LiquidNetConfig
from spec.config import TrainingConfig
from tools import doctor
from tools.cli import backends
from tools.cli.main import main
from tools.training import selftest
from tools.training.selftest import Verdict

torch = pytest.importorskip("torch", reason="faults are planted in torch")
scans = backends.load("torch", "ops.scan")

pytestmark = pytest.mark.usefixtures("native_methods")
TRAIN = ("--d-model", "16", "--d-ff", "24", "--n-layers", "1", "--eval-windows", "2", "--batch-size", "2")
SIZES = (LiquidNetConfig(d_model=16), TrainingConfig(batch_size=2, seq_len=64))
AUTO = scans.choose_method((2, 64, 16))
OTHER = next(name for name in selftest.TRUST if name in scans.METHODS and name != AUTO)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def faulty(monkeypatch):
    """What `auto` takes is off by 1 in 1000."""
    right = scans.METHODS[AUTO]
    monkeypatch.setitem(scans.METHODS, AUTO, lambda *inputs: 1.001 * right(*inputs))


@pytest.fixture
def counted(monkeypatch):
    """The methods that were tested, in order."""
    tested, real = [], selftest.self_test

    def call(backend, method):
        tested.append(method)
        return real(backend, method)

    monkeypatch.setattr(selftest, "self_test", call)
    return tested


def train(data, out, *more):
    with pytest.raises(SystemExit) as stop:
        main(["train", "torch", "--data", str(data), "--out", str(out), *TRAIN, "--steps", "1", *map(str, more)])
    assert stop.value.code == 0


def run_doctor(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--json", str(tmp_path / "doctor.json")])
    captured = capsys.readouterr()
    return stop.value.code, json.loads((tmp_path / "doctor.json").read_text()), captured.out, captured.err


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_every_method_passes_its_self_test(backend):
    if backend not in backends.installed():
        pytest.skip(f"{backend} is not installed")
    for method in proved.load(backend).METHODS["scan"]:
        verdict = selftest.self_test(backend, method)
        assert verdict.passed and 0.0 < verdict.worst <= 1.0 and verdict.runs, (method, verdict)


def test_a_method_that_passes_leaves_auto_alone_and_is_tested_once(counted):
    for _ in range(2):
        assert selftest.trusted_method("torch", "auto", *SIZES, pytest.fail) == "auto"
    assert counted == [AUTO]


def test_a_faulty_method_is_named_replaced_and_remembered(faulty, counted, small_data, tmp_path, capsys):
    train(small_data, tmp_path / "a")
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert f"{AUTO} fails its self-test in torch on cpu" in warning
    assert "times its rounding bound" in warning
    assert f"{OTHER} is used instead; see liquidnet doctor" in warning
    state = json.loads((tmp_path / "a" / "checkpoints" / "step_00000001" / "state.json").read_text())
    assert f'"method": "{OTHER}"' in json.dumps(state)
    train(small_data, tmp_path / "b")
    assert "WARNING" in capsys.readouterr().err
    assert counted == [AUTO, OTHER]
    bounds.WORST.clear()  # these errors were planted: they are none of the suite's


def test_a_named_method_is_used_as_it_is(faulty, counted, small_data, tmp_path, capsys):
    train(small_data, tmp_path / "run", "--method", AUTO)
    assert "WARNING" not in capsys.readouterr().err and not counted


def test_where_nothing_passes_training_is_refused(monkeypatch):
    monkeypatch.setattr(selftest, "self_test", lambda *_: Verdict(False, 7.0, "off"))
    with pytest.raises(ValueError, match=r"no scan method of torch on cpu.* by 7 times its rounding bound"):
        selftest.trusted_method("torch", "auto", *SIZES, print)


def test_a_method_that_does_not_run_here_is_told_in_its_own_words(monkeypatch):
    def refuse(*_):
        raise NotImplementedError("needs a GPU of another make")

    monkeypatch.setitem(scans.METHODS, AUTO, refuse)
    verdict = selftest.self_test("torch", AUTO)
    assert not verdict.passed and not verdict.runs
    assert verdict.message == "does not run here: needs a GPU of another make"
    told = []
    assert selftest.trusted_method("torch", "auto", *SIZES, told.append) == OTHER
    assert "needs a GPU of another make" in told[0]


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"x": 1}', None])
def test_a_cache_that_cannot_be_read_or_written_is_no_error(content, counted):
    path = selftest.cache_file()
    path.parent.mkdir(parents=True)
    if content is None:
        path.parent.rmdir()
        path.parent.write_text("a file where the directory should be")
    else:
        path.write_text(content)
    for _ in range(2):
        assert selftest.trusted_method("torch", "auto", *SIZES, pytest.fail) == "auto"
    assert counted == [AUTO] * (2 if content is None else 1)


def test_a_verdict_is_of_these_sources_and_this_device(monkeypatch):
    selftest.remember("torch", AUTO, Verdict(True, 0.5))
    assert selftest.known_verdict("torch", AUTO) == Verdict(True, 0.5)
    assert selftest.known_verdict("torch", "sequential") is None
    for name in ("sources_digest", "devices", "version"):
        with monkeypatch.context() as change:
            change.setattr(selftest, name, lambda _: ["another"])
            assert selftest.known_verdict("torch", AUTO) is None


def test_doctor_passes_and_keeps_its_verdicts(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(backends, "installed", lambda: ["torch"])
    code, found, out, _ = run_doctor(tmp_path, capsys)
    assert code == 0 and found["passed"]
    rows = found["backends"]["torch"]["methods"]
    assert {(row["operation"], row["method"]) for row in rows} >= {("scan", "sequential"), ("mixer", AUTO)}
    assert all(row["runs"] and row["worst"] <= 1.0 for row in rows)
    assert found["environment"]["versions"]["torch"] and AUTO in out
    assert {row["cache"] for row in rows if row["operation"] == "mixer"} == {"kept now"}
    _, found, _, _ = run_doctor(tmp_path, capsys)
    assert {row["cache"] for row in found["backends"]["torch"]["methods"] if row["operation"] == "mixer"} == {"agrees"}


def test_doctor_says_where_torch_computes_in_what_and_how(monkeypatch, tmp_path, capsys):
    """Of this machine, and of one with a GPU that is too old for bfloat16 and for the kernels."""
    monkeypatch.setattr(backends, "installed", lambda: ["torch"])
    devices = backends.load("torch", "ops.devices")
    _, found, out, _ = run_doctor(tmp_path, capsys)
    one = found["backends"]["torch"]
    assert one["device"] == devices.default_device().type and one["decode"] in ("eager", "graph", "numba")
    assert one["triton"] == devices.triton_refusal(devices.default_device())
    line = next(line for line in out.splitlines() if line.startswith("torch: computes on"))
    assert f"half precision: --dtype {one['dtype']}; decode: {one['decode']}" in line
    for name, told in (("has_bfloat16", False), ("architecture", "sm_75"), ("triton_refusal", "too old")):
        monkeypatch.setattr(devices, name, lambda device, told=told: told)
    told = doctor.placement("torch")
    assert told["dtype"] == "float16" and told["architecture"] == "sm_75"
    line = doctor._placement_line(told)
    assert "(sm_75); half precision: --dtype float16" in line and line.endswith("Triton methods do not run: too old")
    assert doctor._placement_line({**told, "triton": None}).endswith("Triton methods run")


def test_doctor_says_how_jax_decodes():
    pytest.importorskip("jax", reason="it is asked")
    assert doctor.placement("jax") == {"dtype": "bfloat16", "decode": "jit"}


def test_doctor_finds_a_fault_and_corrects_the_cache(monkeypatch, tmp_path, capsys):
    """A mixer method that is made of parts fails with its scan."""
    right = scans.METHODS["chunked"]
    monkeypatch.setitem(scans.METHODS, "chunked", lambda *inputs: 1.001 * right(*inputs))
    monkeypatch.setattr(backends, "installed", lambda: ["torch"])
    selftest.remember("torch", "chunked", Verdict(True, 0.5))
    code, found, out, _ = run_doctor(tmp_path, capsys)
    assert code == 1 and not found["passed"] and "is off by" in out
    bad = [row for row in found["backends"]["torch"]["methods"] if not row["passed"]]
    assert {(row["operation"], row["method"]) for row in bad} == {("scan", "chunked"), ("mixer", "chunked")}
    assert all(row["worst"] > 1.0 for row in bad)
    assert [row["cache"] for row in bad if row["operation"] == "mixer"] == ["said within: corrected"]
    assert not selftest.known_verdict("torch", "chunked").passed
    bounds.WORST.clear()


def test_doctor_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(backends, "installed", list)
    monkeypatch.setattr("parity.proof.adapters.missing", lambda name: f"{name} is not installed")
    code, found, out, err = run_doctor(tmp_path, capsys)
    assert code == 2 and "no backend is installed" in err
    assert "pip install 'liquidnet-dual[jax]'" in out and "missing" in found["backends"]["torch"]


def test_doctor_survives_a_backend_without_a_device(monkeypatch, tmp_path, capsys):
    jax = pytest.importorskip("jax", reason="its devices are what may be missing")

    def refuse():
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setattr(backends, "installed", lambda: ["jax"])
    code, found, out, _ = run_doctor(tmp_path, capsys)
    assert code == 1 and found["backends"]["jax"] == {"unusable": "cannot be used: Unable to initialize backend 'tpu'"}
    assert "jax: cannot be used: Unable" in out


def test_doctor_knows_what_auto_takes_of_the_losses_in_torch(monkeypatch):
    losses = backends.load("torch", "ops.cross_entropy")
    taken = []

    class Told(dict):
        def __getitem__(self, name):
            taken.append(name)
            raise KeyError(name)

    monkeypatch.setattr(losses, "METHODS", Told(losses.METHODS))
    one = torch.ones(1, 1, 1, device=backends.load("torch", "ops.devices").default_device())
    with pytest.raises(KeyError):
        losses.cross_entropy(one, one[0], torch.zeros_like(one[0], dtype=torch.long), one.dtype)
    assert taken == [doctor.automatic("torch")["loss"]]


def test_doctor_knows_what_auto_takes_of_the_losses_in_jax(monkeypatch):
    """The program of `auto` is that of the method, where there is more than one chunk."""
    jax = pytest.importorskip("jax", reason="it is asked")
    losses = backends.load("jax", "ops.cross_entropy")
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 1)

    def program(method):
        def nats(hidden, embedding, labels):
            return losses.cross_entropy(hidden, embedding, labels, hidden.dtype, method)[0]

        shapes = jax.ShapeDtypeStruct((2, 8, 4), "float32"), jax.ShapeDtypeStruct((7, 4), "float32")
        return jax.jit(nats).lower(*shapes, jax.ShapeDtypeStruct((2, 8), "int32")).as_text()

    chosen = doctor.automatic("jax")["loss"]
    assert {name for name in losses.METHODS if program(name) == program("auto")} == {chosen}


def test_a_method_that_crashes_is_not_used_and_is_tried_again(monkeypatch, counted):
    def crash(*_):
        raise RuntimeError("out of registers")

    monkeypatch.setitem(scans.METHODS, AUTO, crash)
    told = []
    for _ in range(2):
        assert selftest.trusted_method("torch", "auto", *SIZES, told.append) == OTHER
    assert "WARNING" in told[0] and counted.count(AUTO) == 2
    assert "crashes: RuntimeError: out of registers" in selftest.self_test("torch", AUTO).message
