"""The stories are a pure function of (seed, index), readable, and remember what they mention."""

import hashlib
import inspect
import itertools
import re
import runpy
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.data.stories import MAX_CHARACTERS, MIN_CHARACTERS, stories
from tools.data.story_parser import plots, read_plots, read_tables, tables

SAMPLE = 600
DATA = Path(inspect.getfile(stories)).with_name("stories_data")


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return list(stories(SAMPLE, seed=5))


@pytest.mark.parametrize(
    ("seed", "count", "digest"),
    [
        (0, 200, "dd0a7863cb4f1c82483dce0c8419c983bf6960d13853b51c2ee9356c9eb3a205"),
        (0, 2000, "2467c543470a8ad49c5b6727851cb12c6447a9fb3344519e4a20926ae58f567a"),
        (2**64 - 1, 1500, "3bc130dcbd2212e0188b4075970891c4c4bfd463af6e8285b4b11d552223339d"),
    ],
)
def test_the_first_stories_of_a_seed_never_change(seed: int, count: int, digest: str):
    assert hashlib.sha256("\0".join(stories(count, seed)).encode()).hexdigest() == digest


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), count=st.integers(1, 6))
def test_a_story_depends_on_seed_and_index_alone(seed: int, count: int):
    assert list(stories(count, seed)) == list(itertools.islice(stories(count + 7, seed), count))


def test_stories_and_seeds_differ(sample: list[str]):
    assert len(set(sample)) == SAMPLE
    assert not set(sample) & set(stories(SAMPLE, seed=6))


def test_length_and_alphabet(sample: list[str]):
    assert all(MIN_CHARACTERS <= len(story) <= MAX_CHARACTERS for story in sample)
    assert (MIN_CHARACTERS, MAX_CHARACTERS) == (400, 1200)
    assert all(story.isascii() and story.isprintable() for story in "".join(sample).split("\n"))


@pytest.mark.parametrize(
    "wrong",
    [
        r"[][{}<>|*/_]",  # notation left over
        r"\*|  | \n|\n |\n\n",
        r" [,.;!?]",
        r"\w\.\.(?!\.)|,,|\.,|,\.",
        r"\b[Aa] [aeiou]|\b[Aa]n (?!hour)[^aeiou]",
        r"(?:^|\n)\"?[a-z]",  # a paragraph begins small
        r"[.!?] \"?[a-z]",  # a sentence begins small
        r"\b(\w+) \1\b",  # a word twice
        r"\bNone\b|\b\d",
    ],
)
def test_the_text_is_clean(sample: list[str], wrong: str):
    found = [(match[0], story) for story in sample for match in re.finditer(wrong, story)]
    assert not found, found[:2]


def test_every_story_ends_and_quotes_close(sample: list[str]):
    for story in sample:
        assert re.search(r'[.!?]"?$', story), story
        assert all(paragraph.count('"') % 2 == 0 for paragraph in story.split("\n")), story


def test_pronouns_fit_the_hero(sample: list[str]):
    named = re.compile(r"(girl|boy)(?: who was very \w+)?(?:,)? (?:named|called) (\w+)")
    found = [match for story in sample if (match := named.search(story))]
    assert {match[1] for match in found} == {"girl", "boy"}
    for match in found:
        assert match[2] in tables()[match[1]]


def test_what_is_lost_is_found_again(sample: list[str]):
    lost = [story for story in sample if " was gone! " in story and " There was the " not in story]
    assert len(lost) >= 5
    for story in lost:
        noun = re.search(r"the ([a-z -]+) was gone!", story)
        assert noun
        before, after = story.split(noun[0])
        assert noun[1] in before
        assert noun[1] in after


def test_the_text_is_rich():
    text = "\n".join(stories(400, seed=1)).encode()
    assert len(zlib.compress(text, 9)) / len(text) > 0.2
    assert min(len(set(table)) for table in tables().values()) >= 3


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-3, 0), (1, -1), (1, 2**64)])
def test_bad_arguments(count: int, seed: int):
    with pytest.raises(ValueError, match=str(count if count < 1 else seed)):
        stories(count, seed)


def test_data_are_read_with_the_first_story(monkeypatch: pytest.MonkeyPatch):
    class ReadingError(Exception): ...

    def refuse(path: Path, **_):
        raise ReadingError(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    tables = runpy.run_path(inspect.getfile(read_tables))["tables"]
    with pytest.raises(ReadingError):
        tables()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("]", "", "Invalid value"),
        ("girl = [", "girls = [", "no tables .'girl'"),
        ('kin = ["mother", ', "kin = [3, ", "table kin: 3 is neither"),
        ('sad = ["sad"', 'sad = []\nsad2 = ["sad"', r"table sad: \[\] is not an array"),
        ("rhyme = [", "trait = [", "Cannot overwrite"),
        ('noun = ["bag"', 'none = ["bag"', r"table bag: the slots of '<color> \$noun' are not .*'none'"),
        ('template = "<color> $noun"', 'template = "<color> $"', "table cup: the slots of"),
        ('noun = ["bag"', 'noun = [1, "bag"', "table bag: .* is neither"),
        ("whistle/whistled/whistling", "whistle/whistled", "table skill: .*different numbers of forms"),
        ("He} felt <sad>", "He} felt <sadness>", "no form 0 of 'sadness'"),
        ("He} felt <sad>", "He} felt {trick:1}", "no form 1 of 'trick'"),
        ("He} felt <sad>", "He} felt <sad", "a bracket is not closed"),
        ("[lip trembled|eyes", "lip trembled|eyes", r"\| outside of \[ \]"),
        ("[big|slow", "[[big|slow", "a bracket is not closed"),
        ("hot|salty] tear", "hot|salty]] tear", "a bracket is not closed, or not opened"),
    ],
)
def test_malformed_tables_are_refused(old: str, new: str, message: str):
    text = (DATA / "tables.toml").read_text(encoding="utf-8")
    assert read_tables(text) == tables()
    assert old in text
    with pytest.raises(ValueError, match=message):
        read_tables(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("beats = '''", "beats = ", "Invalid value"),
        ("[[plot]]", "[[plots]]", r"it has \['plot', 'plots'\]"),
        ('name = "gift"', 'name = "lost"', "'lost', .* is not a new name and its beats"),
        ('name = "gift"\n', "", "is not a new name and its beats"),
        ('name = "gift"\n', 'name = "gift"\nlength = 3\n', "is not a new name and its beats"),
        ("* {hero} had a", "- {hero} had a", "plot lost: '- {hero} had a .* has no mark"),
        ("? <detail>", "<detail>", "plot lost: '<detail>' has no mark"),
        ("? <detail>", "?", r"plot lost: '\?' has no mark, or nothing after it"),
        ("? <detail>", "? <details>", "no form 0 of 'details'"),
        ("{spot}.", "{spot:1}.", "no form 1 of 'spot'"),
        ("{He} took it", "{They} took it", "no form 0 of 'they'"),
        ("[slipped|dropped|fell]", "[slipped|dropped|fell", "a bracket is not closed"),
    ],
)
def test_malformed_plots_are_refused(old: str, new: str, message: str):
    text = (DATA / "plots.toml").read_text(encoding="utf-8")
    assert read_plots(text, tables()) == plots()
    assert old in text
    with pytest.raises(ValueError, match=message):
        read_plots(text.replace(old, new, 1), tables())


def test_a_refusal_names_the_file(tmp_path: Path):
    (tmp_path / "stories_data").mkdir()
    source = Path(inspect.getfile(read_tables))
    copy = tmp_path / source.name
    copy.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "stories_data" / "tables.toml").write_text("girl = [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"stories_data.tables\.toml: "):
        runpy.run_path(str(copy))["tables"]()
