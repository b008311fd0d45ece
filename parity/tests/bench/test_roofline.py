"""`liquidnet bench --roofline`: the modelled step against sums by hand, and an origin for every number."""

from __future__ import annotations

import json

import pytest

from parity.suite.compiled.triton.budget import BUDGET
from spec.presets import PRESETS
from tools.bench import roofline
from tools.cli import backends
from tools.cli.main import main

TOKENS = 24_576


def terms(loss=roofline.OURS, mixer=None):
    mixer = mixer or roofline.MixerTraffic(8.07, 14.1, "counted")
    return {term.name: term for term in roofline.step_terms(PRESETS["small"], TOKENS, mixer, loss)}


@pytest.mark.parametrize(
    "term, a5000, h100",
    [
        # 6 n d v = 2.846e12 FLOPs, at 111.1 and 989.4 TFLOP/s, and a third more where the logits are made twice.
        ("LM head products", 34.1, 3.83),
        # 6 n (4 d^2 + 3 d f) l = 1.566e12 FLOPs; on the H100 the narrow products are bound by their operands.
        ("layer products", 14.1, 1.70),
        # 22.17 bytes n d l, at 768 and 3350 GB/s.
        ("mixer", 1.63, 0.375),
        # 16 bytes n f l.
        ("SwiGLU", 3.15, 0.72),
        # 28 bytes n d 2 l.
        ("residual + norm", 4.13, 0.947),
        # 34 bytes a parameter.
        ("optimizer", 1.32, 0.303),
    ],
)
def test_terms_are_what_a_pocket_calculator_says(term, a5000, h100):
    row = terms("logits never in memory")[term]
    assert 1e3 * row.seconds(roofline.DEVICES["A5000"]) == pytest.approx(a5000, rel=0.01)
    assert 1e3 * row.seconds(roofline.DEVICES["H100"]) == pytest.approx(h100, rel=0.01)


@pytest.mark.parametrize(
    "loss, a5000, h100",
    [
        ("all logits at once, eager float32", 67.6, 15.5),
        ("all logits at once, fused bfloat16", 19.3, 4.42),
        ("one pass over chunks", 22.5, 5.16),
        ("logits never in memory", 0.0, 0.0),
    ],
)
def test_the_traffic_of_the_logits_is_bytes_times_their_number(loss, a5000, h100):
    row = terms(loss)["cross-entropy"]
    assert row.bytes == roofline.LOSSES[loss].logit_bytes * TOKENS * 50257
    assert 1e3 * row.seconds(roofline.DEVICES["A5000"]) == pytest.approx(a5000, rel=0.01)
    assert 1e3 * row.seconds(roofline.DEVICES["H100"]) == pytest.approx(h100, rel=0.01)


def test_chunks_pay_for_the_gradient_that_each_adds_to():
    chunks = -(-TOKENS // (2**26 // 50257))
    assert chunks == 19
    one, many = terms("all logits at once, fused bfloat16"), terms("one pass over chunks")
    assert many["LM head products"].flops == pytest.approx(one["LM head products"].flops)
    weights = 50257 * 384
    more = chunks * 2 * 2 * weights + chunks * 8 * weights - 2 * 2 * weights - 4 * weights
    assert many["LM head products"].bytes - one["LM head products"].bytes == pytest.approx(more)


def test_the_chunks_are_those_of_the_loss():
    pytest.importorskip("torch", reason="torch_impl's loss")
    at_most = (
        backends.load("torch", "ops.cross_entropy.fused_linear").CHUNK_FACTOR
        * backends.load("torch", "ops.cross_entropy").CHUNK_LOGITS
    )
    assert at_most == roofline.LOSSES[roofline.OURS].held


def test_peers_cost_their_counted_bytes():
    for name, milliseconds in (("fla chunk, eager gates", 13.6), ("fla recurrent, compiled gates", 4.42)):
        row = terms(mixer=roofline.MIXERS[name])["mixer"]
        assert 1e3 * row.seconds(roofline.DEVICES["A5000"]) == pytest.approx(milliseconds, rel=0.01)


def test_every_number_has_an_origin():
    result = roofline.modelled("small", PRESETS["small"], 48, 512)
    for row in (*result["terms"], *result["losses"], *result["mixers"]):
        assert len(row["origin"]) > 10, row
    assert "parity/suite/compiled/triton/budget.json" in next(
        row["origin"] for row in result["terms"] if row["term"] == "mixer"
    )
    assert all("datasheet" in row["source"] or "whitepaper" in row["source"] for row in result["devices"].values())
    for device in roofline.DEVICES:
        total = sum(row["milliseconds"][device] for row in result["terms"])
        assert result["step"][device]["milliseconds"] == pytest.approx(total)
    assert result["published"]["tokens_per_second"] == 56_668
    assert 0.1 < result["published"]["of_the_floor"] < 0.3


def test_flops_for_mfu_leave_recomputation_and_norms_out():
    assert roofline.step_flops(PRESETS["small"], TOKENS) == 6 * TOKENS * (
        50257 * 384 + 6 * (4 * 384**2 + 3 * 384 * 1024)
    )
    # 12 t d a token and layer for both products of attention, forward and backward, and half of it masked away.
    assert roofline.attention_flops(384, 6, TOKENS, 512) == 12 * 512 * 384 * 6 * TOKENS / 2


def test_the_model_is_printed_beside_what_was_published(tmp_path, capsys):
    main(["bench", "--roofline", "--json", str(tmp_path / "model.json")])
    shown = capsys.readouterr().out
    for word in ("a model, not a measurement", "56,668", "whole step, ms", "LM head products", "A5000", "H100"):
        assert word in shown, word
    result = json.loads((tmp_path / "model.json").read_text())
    assert result["batch_size"] * result["seq_len"] == TOKENS and result["preset"] == "small"


def test_the_model_takes_other_presets_and_batches(tmp_path, capsys):
    main(
        ["bench", "--model", "--preset", "tiny", "--batch-size", "4", "--seq-len", "32", "--json", str(tmp_path / "m")]
    )
    result = json.loads((tmp_path / "m").read_text())
    assert (result["preset"], result["batch_size"], result["seq_len"]) == ("tiny", 4, 32)
    assert "% of this floor" not in capsys.readouterr().out  # what was published is not of this model


def test_the_old_spelling_of_the_flag_works(tmp_path, capsys):
    printed = []
    for flag in ("--roofline", "--model"):
        main(["bench", flag, "--json", str(tmp_path / flag)])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert (tmp_path / "--roofline").read_bytes() == (tmp_path / "--model").read_bytes()


def test_the_mixers_bytes_are_those_that_were_counted():
    counted = json.loads(BUDGET.read_text())["bytes"]
    ours = roofline.FUSED
    assert (ours.forward, ours.backward) == (counted["mixer forward"], counted["mixer backward"])
