"""A number that README or docs quote is in the record of its run, or its reader is told that none is kept."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from parity.suite.mutants import MUTANTS, load_score
from parity.suite.support.doc_checks import PAGES
from parity.suite.support.doc_numbers import RECORDS, is_shown, marks, shown_numbers, unfounded
from spec.parameters import num_parameters
from spec.presets import PRESETS

TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_numbers_of_a_page_are_those_of_its_records(page):
    assert list(unfounded(TEXTS[page])) == []


def test_every_record_is_quoted():
    assert RECORDS.keys() <= {mark for text in TEXTS.values() for mark in marks(text)}


@pytest.mark.parametrize("name", RECORDS)
def test_any_other_number_is_found(name):
    """Each number of each block, a tenth larger; and one that is left out."""
    (text,) = (text for text in TEXTS.values() if f"<!-- numbers: {name} -->" in text)
    before, after = text.split(f"<!-- numbers: {name} -->\n")
    block, *rest = re.split(r"(?=\n\n|\n\* )", after, maxsplit=1)
    shown = shown_numbers(block.splitlines())
    assert len(shown) == len(list(RECORDS[name]())) and list(unfounded(text)) == []
    for number in {*shown} - {"0"}:
        wrong = f"{float(number.replace(',', '')) * 1.1 + 1:.4g}"
        changed = re.sub(rf"(?<![\w.,/-]){re.escape(number)}(?!\w|[.,]\d)", wrong, block)
        page = "".join((before, f"<!-- numbers: {name} -->\n", changed, *rest))
        bound = f"within {number} %" in block
        assert bound or list(unfounded(page)), (name, number, wrong)


def test_a_table_that_says_nothing_of_its_numbers_is_found():
    table = "| | time |\n|---|---|\n| ours | 1.5 ms |\n"
    assert list(unfounded(f"# A\n\n{table}")) and list(unfounded(f"# A\n\n<!-- numbers: none kept -->\n{table}"))
    assert list(unfounded(f"# A\n\n<!-- numbers: docs/bench/another.json -->\n{table}"))
    assert not list(unfounded(f"# A\n\nNo record of it is kept.\n\n<!-- numbers: none kept -->\n{table}"))
    elsewhere = f"# A\n\nNo record of it is kept.\n\n## B\n\n<!-- numbers: none kept -->\n{table}"
    assert list(unfounded(elsewhere))


@pytest.mark.parametrize(
    "number, right, wrong",
    [(28_224.2, ("28,200", "28,224", "28,220"), ("28,300", "28,225")), (1.449, ("1.45", "1.4"), ("1.44", "1.5")),
     (0.747, ("0.747", "0.75"), ("0.74", "0.746")), (893.3, ("893",), ("894", "900.0")),
     (10_000, ("10,000",), ("10,600",))],
)  # fmt: skip
def test_a_number_is_shown_by_rounding_alone(number, right, wrong):
    assert [text for text in (*right, *wrong) if is_shown(number, text)] == list(right)


def test_the_number_of_planted_faults_is_the_catalogues():
    counts = re.findall(r"(\d+)(?= planted faults|\sof them, one by one)", " ".join(TEXTS.values()))
    assert len(counts) >= 3 and {*map(int, counts)} == {len(MUTANTS)}
    score = load_score() or {}
    assert score["caught"] == score["total"] == len(score["rows"])


def test_the_numbers_of_parameters_are_the_presets():
    """In bytes: 257 tokens."""
    found = [
        pair
        for text in TEXTS.values()
        for pair in re.findall(r"`([\w-]+)`(?: \||\s\()\s*([\d,]+)(?= \||\sparam)", text)
    ]
    counted = {(name, int(count.replace(",", ""))) for name, count in found if name in PRESETS}
    assert len(counted) >= 5
    assert counted == {(name, num_parameters(replace(PRESETS[name], vocab_size=257))) for name, _ in counted}
