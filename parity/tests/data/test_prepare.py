"""`prepare` writes what it says, splits where it should, and leaves nothing behind when it cannot."""

import errno
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.suite.support.fixtures import SHARED
from spec.data import open_data
from tools.data import documents
from tools.data import prepare as module
from tools.data.prepare import Prepare
from tools.data.split import Split, choose_split
from tools.data.stories import stories
from tools.tokenizer import END_OF_TEXT, build_tokenizer, load_tokenizer


def prepare(**flags) -> None:
    Prepare(**flags).run()


def tokens(out: Path, part: str) -> np.ndarray:
    return np.fromfile(out / f"{part}.bin", np.dtype(read_meta(out)["dtype"]).newbyteorder("<"))


def read_meta(out: Path) -> dict:
    return json.loads((out / "meta.json").read_text())


def texts_of(out: Path, part: str) -> list[str]:
    """The documents of a token file, the last one empty where the file ends with end of text."""
    return load_tokenizer(out / "tokenizer.json").decode(tokens(out, part)).split(END_OF_TEXT)


def check_meta(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == ["meta.json", "tokenizer.json", "train.bin", "val.bin"]
    meta = read_meta(out)
    tokenizer = load_tokenizer(out / "tokenizer.json")
    assert meta["format_version"] == 1
    assert (meta["vocab_size"], meta["end_of_text_id"]) == (tokenizer.vocab_size, tokenizer.end_of_text_id)
    assert meta["tokenizer_sha256"] == hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()
    for part in ("train", "val"):
        assert meta[part]["sha256"] == hashlib.sha256((out / f"{part}.bin").read_bytes()).hexdigest()
        assert meta[part]["tokens"] == len(tokens(out, part)) > 0
        assert meta[part]["bytes"] == sum(len(text.encode()) for text in texts_of(out, part))
        assert meta[part]["documents"] == sum(text != "" for text in texts_of(out, part))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes("Sch\u00f6ne Gr\u00fc\u00dfe.\nOne document only.\n".encode() * 40)
    return path


def test_one_document_is_cut_by_characters(out: Path, text_file: Path, capsys: pytest.CaptureFixture[str]):
    prepare(text=(text_file,), out=out)
    check_meta(out)
    text = text_file.read_bytes().decode()
    cut = int(len(text) * 0.9)
    assert texts_of(out, "train") == [text[:cut]]  # no end of text: the document goes on in the other part
    assert texts_of(out, "val") == [text[cut:], ""]
    meta = read_meta(out)
    assert (meta["dtype"], meta["vocab_size"], meta["end_of_text_id"]) == ("uint16", 257, 256)
    assert (meta["tokenizer"], meta["source"]) == ("byte", ["text.txt"])
    printed = capsys.readouterr()
    assert f"{meta['train']['tokens']:,} tokens" in printed.out
    assert str(out) in printed.out
    assert printed.err.splitlines() == ["reading ...", "encoding ..."]
    assert open_data(out).meta == meta


@pytest.mark.skipif(not (SHARED / "tinyshakespeare.txt").exists(), reason=f"no tinyshakespeare in {SHARED}")
def test_tinyshakespeare_is_cut_where_others_cut_it(out: Path):
    prepare(text=(SHARED / "tinyshakespeare.txt",), out=out)
    meta = read_meta(out)
    assert (meta["train"]["tokens"], meta["val"]["tokens"]) == (1003854, 111540 + 1)


def test_many_documents_stay_whole(out: Path, tmp_path: Path):
    written = [f"Document {index}. " + "word " * (index % 7) for index in range(50)]
    path = tmp_path / "many.txt"
    path.write_text(f"\n{END_OF_TEXT}\n".join(written))
    prepare(text=(path,), out=out, val_fraction=0.2)
    check_meta(out)
    train, val = texts_of(out, "train"), texts_of(out, "val")
    assert train.pop() == val.pop() == ""
    assert train + val == written
    total, longest = sum(map(len, written)), max(map(len, written))
    assert sum(map(len, val)) == pytest.approx(0.2 * total, abs=longest)


def test_stories(out: Path):
    prepare(stories=30, stories_seed=9, out=out)
    check_meta(out)
    assert texts_of(out, "train")[:-1] + texts_of(out, "val")[:-1] == list(stories(30, 9))
    assert read_meta(out)["source"] == ["stories:30:9"]


def test_jsonl_and_text_together(out: Path, tmp_path: Path):
    lines = tmp_path / "some.jsonl"
    rows = [{"text": "first \u00e9\nline", "id": 1}, {"text": "  "}]
    # A number longer than Python reads is no text, and no harm.
    lines.write_text("\n\n".join([*map(json.dumps, rows), r'{"n": %s, "text": "\ntwo\n"}' % ("9" * 5000)]))
    plain = tmp_path / "plain.txt"
    plain.write_bytes(b"\xef\xbb\xbffour\r\n" + END_OF_TEXT.encode() + b"\r\n\r\n" + END_OF_TEXT.encode() + b"five\n")
    prepare(text=(lines, plain), out=out, val_fraction=0.01)
    check_meta(out)
    assert texts_of(out, "train") == ["first \u00e9\nline", "\ntwo\n", "four", "five"]
    assert texts_of(out, "val") == ["\n", ""]
    assert read_meta(out)["source"] == ["some.jsonl", "plain.txt"]


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_a_row_is_one_document_whatever_it_holds(out: Path, tmp_path: Path, tokenizer: str):
    rows = [f"{END_OF_TEXT}one\n{END_OF_TEXT}\ntwo{END_OF_TEXT}", " ", f"three{END_OF_TEXT}", f"\n{END_OF_TEXT}\r\n"]
    lines, plain = tmp_path / "rows.NDJSON", tmp_path / "plain.txt"
    lines.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    plain.write_text(f"{END_OF_TEXT}one\n{END_OF_TEXT}\ntwo")
    (tmp_path / "val.txt").write_bytes(plain.read_bytes())
    prepare(text=(lines, plain), val_text=(tmp_path / "val.txt",), out=out, tokenizer=tokenizer)
    found, end = tokens(out, "train"), read_meta(out)["end_of_text_id"]
    documents_found = np.split(found, np.flatnonzero(found == end) + 1)
    decode = load_tokenizer(out / "tokenizer.json").decode
    assert [decode(ids[:-1]) for ids in documents_found[:-1]] == [rows[0], rows[2], rows[3], "one", "two"]
    assert read_meta(out)["train"]["documents"] == 5 and read_meta(out)["val"]["documents"] == 2


def test_bpe_learns_from_the_training_part_alone(out: Path, tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 60 + "zyzzyva " * 20)
    prepare(text=(path,), out=out, tokenizer="bpe:300")
    check_meta(out)
    text = path.read_text()
    expected = build_tokenizer("bpe:300", [text[: int(len(text) * 0.9)]])
    assert (out / "tokenizer.json").read_text() == expected.to_json()
    assert "zz" not in expected.backend.get_vocab()
    other = tmp_path / "again"
    prepare(text=(path,), out=other, tokenizer=str(out / "tokenizer.json"))
    assert (other / "val.bin").read_bytes() == (out / "val.bin").read_bytes()


def test_a_small_text_gives_a_small_vocabulary_and_says_so(
    out: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
):
    prepare(text=(text_file,), out=out, tokenizer="bpe:9000")
    assert read_meta(out)["vocab_size"] < 9000
    assert "the text gives no more" in capsys.readouterr().out


def test_large_vocabularies_take_four_bytes(out: Path, text_file: Path, tmp_path: Path):
    parsed = json.loads(build_tokenizer("byte").to_json())
    parsed["added_tokens"].append(parsed["added_tokens"][0] | {"id": 257, "content": "<|pad|>"})
    vocabulary = parsed["model"]["vocab"]
    vocabulary |= {END_OF_TEXT: 256, "<|pad|>": 257}
    vocabulary |= {f"unused{index}": index for index in range(258, 70000)}
    path = tmp_path / "large.json"
    path.write_text(json.dumps(parsed))
    prepare(text=(text_file,), out=out, tokenizer=str(path))
    check_meta(out)
    assert read_meta(out)["dtype"] == "uint32"
    assert (out / "val.bin").stat().st_size == 4 * read_meta(out)["val"]["tokens"]


def test_many_short_documents_are_encoded_a_few_at_a_time():
    batches = [*module._batches(iter([("train", "a", True)] * 100_000))]
    assert sum(map(len, batches)) == 100_000 and max(map(len, batches)) <= 1 << 15


def test_of_words_that_never_end_a_tokenizer_learns_from_few(monkeypatch: pytest.MonkeyPatch):
    class Parts:
        @staticmethod
        def pieces(advance: object) -> list[tuple[str, str, bool]]:
            return [("train", "word " * 25_000, True), *[("train", "A" * 10**6, False)] * 30, ("train", "end", True)]

    texts = [*module._train_texts(Parts(), None)]  # type: ignore[arg-type]
    assert texts[0] == "word " * 25_000 and texts[-1] == "end" and max(map(len, texts[1:])) <= 1 << 16
    assert len(texts) == 2 + module._LONG_WORDS


def test_the_same_input_gives_the_same_bytes(text_file: Path, tmp_path: Path):
    for name in ("a", "b"):
        prepare(text=(text_file,), out=tmp_path / name, tokenizer="bpe:280")
    made = list((tmp_path / "a").iterdir())
    assert {path.name for path in made} == {"train.bin", "val.bin", "tokenizer.json", "meta.json"}
    for path in made:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_command_line_makes_flags_of_it(out: Path, text_file: Path):
    files = ["--text", str(text_file), str(text_file), "--out", str(out)]
    tyro.cli(Prepare, args=[*files, "--tokenizer", "bpe:300", "--val-fraction", "0.5"]).run()
    assert read_meta(out)["source"] == ["text.txt", "text.txt"]


def test_large_files_are_read_in_blocks(out: Path, tmp_path: Path):
    generator = random.Random(0)
    words = ["caf\u00e9", "\u4f60\u597d", "tree", "a", "\U0001f333", "Once", "7"]
    text = "".join(generator.choice(words) + generator.choice([" ", "\n", ", "]) for _ in range(60000))
    path = tmp_path / "large.txt"
    path.write_text(text)
    assert path.stat().st_size > 3 * documents._BLOCK_BYTES
    prepare(text=(path,), out=out)
    assert texts_of(out, "train")[0] + texts_of(out, "val")[0] == text


@settings(deadline=None, max_examples=40)
@given(before=st.text(st.characters(exclude_categories=["Cs"]), max_size=20), block=st.integers(1, 9))
def test_a_byte_that_is_not_utf8_is_named(tmp_path_factory: pytest.TempPathFactory, before: str, block: int):
    path = tmp_path_factory.mktemp("bad") / "bad.txt"
    path.write_bytes(before.encode() + b"\xff" + b"after")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_BLOCK_BYTES", block)
        refused(path.parent / "data", rf"bad\.txt: not UTF-8 at byte {len(before.encode())};", text=(path,))


BAD_FILES = {
    "empty.txt": (b"", "empty.txt: no text in it"),
    "blank.txt": (b" \n\t\n", "blank.txt: no text in it"),
    "markers.txt": (f"\n{END_OF_TEXT}\n{END_OF_TEXT}".encode(), "markers.txt: no text in it"),
    "cut.txt": (b"abc\xe2\x82", "cut.txt: not UTF-8 at byte 3"),
    "latin.txt": ("caf\u00e9".encode("latin-1"), "latin.txt: not UTF-8 at byte 3"),
    "empty.jsonl": (b"\n\n", "empty.jsonl: no text in it"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": ', "broken.jsonl: line 2 is not a JSON object"),
    "other.jsonl": (b'{"text": "a"}\n\n{"body": "b"}\n', "other.jsonl: line 3 is not a JSON object"),
    "number.jsonl": (b'{"text": 5}', "number.jsonl: line 1"),
    "list.jsonl": (b'["text"]', "list.jsonl: line 1"),
    "half.jsonl": (rb'{"text": "\ud800"}', "half.jsonl: line 1"),
    "deep.jsonl": (b"[" * 200_000, "deep.jsonl: line 1"),
    "bytes.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}', "bytes.jsonl: not UTF-8 at byte 24"),
    "blank.jsonl": (b'{"text": "a"}\n\n \r\n{"text": "\xe9"}', "blank.jsonl: not UTF-8 at byte 28"),
    "one.txt": (b"a", "val_fraction 0.1 of 1 characters leaves a part empty"),
}


def refused(out: Path, message: str, error: type[Exception] = ValueError, **arguments: object) -> None:
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        prepare(out=out, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.rglob("*")) == before


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(out: Path, name: str):
    content, message = BAD_FILES[name]
    path = out.parent / name
    path.write_bytes(content)
    refused(out, message, text=(path,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no text: give either --text FILE... or --stories N"),
        ({"text": (Path("a"),), "stories": 5}, r"two sources of text \(--text and --stories\)"),
        ({"text": (Path("a"),), "dataset": "tinystories"}, r"two sources of text \(--text and --dataset\)"),
        ({"stories": 0}, "stories must be at least 1, not 0"),
        ({"stories": 5, "stories_seed": -1}, "seed must be .*, not -1"),
        ({"stories": 5, "val_fraction": 0.0}, "between 0 and 1, not 0.0"),
        ({"stories": 5, "val_fraction": 1.0}, "between 0 and 1, not 1.0"),
        ({"stories": 5, "val_fraction": float("nan")}, "between 0 and 1, not nan"),
        ({"stories": 5, "tokenizer": "bite"}, "unknown tokenizer 'bite': did you mean byte"),
        ({"stories": 5, "tokenizer": "bpe:100"}, "at least 257"),
        ({"stories": 5, "tokenizer_files": (Path("a"), Path("b"))}, "belongs to --tokenizer gpt2"),
        ({"text": (Path("/"),)}, r"/ is a directory; name its files: --text /\*\.txt"),
    ],
)
def test_bad_arguments(out: Path, arguments: dict[str, object], message: str):
    refused(out, message, **arguments)


def test_missing_files(out: Path):
    refused(out, r"nowhere\.txt: no such file", FileNotFoundError, text=(out.parent / "nowhere.txt",))
    refused(out, r"nowhere\.json", FileNotFoundError, stories=5, tokenizer="nowhere.json")


def test_an_existing_directory_is_kept(out: Path, text_file: Path):
    out.mkdir()
    (out / "precious").write_text("x")
    refused(out, "data already exists", text=(text_file,))
    (out / "precious").unlink()
    prepare(text=(text_file,), out=out)
    refused(out, "data already exists", text=(text_file,))
    refused(text_file, r"text\.txt already exists", text=(text_file,))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["_write_tokens", "_write_meta", "_batches"])
@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [(_interrupt, KeyboardInterrupt, "^$"), (_disk_full, OSError, "no space left on the disk of .*data; free some")],
)
def test_nothing_half_written(
    out: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    fault: Callable[..., None],
    error: type[Exception],
    message: str,
):
    monkeypatch.setattr(module, where, fault)
    refused(out, message, error, text=(text_file,))


def test_a_file_that_breaks_off_between_the_passes(out: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch):
    def choose_and_spoil(lengths: list[int], fraction: float) -> Split:
        text_file.write_bytes(text_file.read_bytes() + b"\xff")
        return choose_split(lengths, fraction)

    monkeypatch.setattr(module, "choose_split", choose_and_spoil)
    refused(out, "not UTF-8", text=(text_file,))


@pytest.mark.parametrize("change", [lambda text: text[: len(text) // 2], lambda text: text + b"more"])
@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_a_text_that_changes_between_the_passes(
    tokenizer: str, change: Callable[[bytes], bytes], out: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
):
    def choose_and_change(lengths: list[int], fraction: float) -> Split:
        text_file.write_bytes(change(text_file.read_bytes()))
        return choose_split(lengths, fraction)

    monkeypatch.setattr(module, "choose_split", choose_and_change)
    flags = {"text": (text_file,), "tokenizer": tokenizer, "max_tokens": 9}
    refused(out, r"the text changed while it was read \(text\.txt\); run it again", **flags)
