"""A download goes on where it broke off, is checked, and says what to do where it cannot be."""

import hashlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from parity.suite.support import fake_hub as stand_in
from parity.suite.support.fake_hub import CHUNK, Hub
from spec.data import open_data
from tools.data import hub as module
from tools.data.hub import HubFile
from tools.data.stories import stories
from tools.tokenizer import END_OF_TEXT

TEXTS = [f"\n{END_OF_TEXT}\n".join(stories(count, seed)).encode() for count, seed in ((200, 1), (20, 2))]
FILES = [stand_in.describe(name, text) for name, text in zip(("a-train.txt", "a-valid.txt"), TEXTS, strict=True)]
TRAIN, VAL = FILES
Outcome = tuple[int, str, str]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with stand_in.serve() as hub:
        for file, text in zip(FILES, TEXTS, strict=True):
            hub.put(file, text)
        yield hub


@pytest.fixture
def prepare(hub: Hub, tmp_path: Path) -> Callable[..., Outcome]:
    """Runs `liquidnet prepare --dataset tinystories` from the stand-in; its exit code, stdout and stderr."""

    def run(*arguments: object, endpoint: str = "", **more: str) -> Outcome:
        flags = ("--out", tmp_path / "data", *arguments)
        process = stand_in.prepare(endpoint or hub.endpoint, tmp_path / "home", FILES, *flags, **more)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return run


def kept(tmp_path: Path, file: HubFile, ending: str = "") -> Path:
    return tmp_path / f"home/assets/liquidnet/somebody--texts/{file.revision}/{file.filename}{ending}"


def refused(outcome: Outcome, tmp_path: Path) -> str:
    """The line of a refusal that left no data behind."""
    code, _, lines = outcome
    *_, last = lines.splitlines()
    assert code == 2 and last.startswith("liquidnet: error: ") and "Traceback" not in lines, lines
    assert {path.name for path in tmp_path.iterdir()} <= {"home"}
    return last


def test_once_downloaded_it_needs_no_hub(hub: Hub, prepare: Callable[..., Outcome], tmp_path: Path):
    code, out, err = prepare()
    assert code == 0, err
    sizes = [f"{len(text):,} bytes" for text in TEXTS]
    expected = [f"downloading {VAL.filename}, {sizes[1]} ...", f"downloading {TRAIN.filename}, {sizes[0]} ..."]
    assert err.splitlines() == [*expected, "encoding ..."]
    assert open_data(tmp_path / "data").meta["source"] == [TRAIN.name]
    assert hub.ranges() == [None, None]
    asked = len(hub.requests)
    (tmp_path / "data").rename(tmp_path / "before")
    code, again, err = prepare(HF_HUB_OFFLINE="1")
    assert (code, again, err) == (0, out, "encoding ...\n")
    for path in (tmp_path / "before").iterdir():
        assert path.read_bytes() == (tmp_path / "data" / path.name).read_bytes()
    assert len(hub.requests) == asked


def test_a_lost_connection_is_taken_up_again(hub: Hub, prepare: Callable[..., Outcome], tmp_path: Path):
    hub.breaks = [len(TEXTS[1]), 3 * CHUNK + 5]
    code, _, err = prepare()
    assert code == 0, err
    assert hub.ranges() == [None, None, f"bytes={3 * CHUNK}-"]
    assert kept(tmp_path, TRAIN).read_bytes() == TEXTS[0]


def test_large_files_lie_on_another_host_that_gets_no_login(hub: Hub, prepare: Callable[..., Outcome], tmp_path: Path):
    hub.redirects, hub.tells_commit = True, False  # the other host knows nothing of commits
    partial = kept(tmp_path, TRAIN, ".incomplete")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(TEXTS[0][:1234])
    code, _, err = prepare(HF_TOKEN="hf_secret")
    assert code == 0, err
    assert hub.ranges() == [None, None, "bytes=1234-", "bytes=1234-"]
    assert kept(tmp_path, TRAIN).read_bytes() == TEXTS[0]
    assert hub.logins == []


def test_a_second_try_gets_only_the_rest(hub: Hub, prepare: Callable[..., Outcome], tmp_path: Path):
    hub.breaks, hub.gone_after = [len(TEXTS[1]), 5 * CHUNK], 2
    last = refused(prepare(), tmp_path)
    assert f"{5 * CHUNK:,} of {len(TEXTS[0]):,} bytes are kept; go online and run the same command again" in last
    hub.gone_after = None
    hub.requests.clear()
    code, _, err = prepare()
    assert code == 0, err
    assert hub.ranges() == [f"bytes={5 * CHUNK}-"]
    assert kept(tmp_path, TRAIN).read_bytes() == TEXTS[0]
    assert not kept(tmp_path, TRAIN, ".incomplete").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_it_goes_on(hub: Hub, prepare: Callable[..., Outcome], tmp_path: Path, how: signal.Signals):
    hub.stalls = True
    process = stand_in.prepare(hub.endpoint, tmp_path / "home", FILES, "--out", tmp_path / "data")
    assert hub.reached.wait(30)
    partial = kept(tmp_path, VAL, ".incomplete")
    _wait_for(partial, len(TEXTS[1]) // 2 // CHUNK * CHUNK, process)
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    assert not (tmp_path / "data").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130 and f"{partial.stat().st_size:,} of {len(TEXTS[1]):,} bytes are kept" in err
    had = partial.stat().st_size
    assert 0 < had < len(TEXTS[1])
    hub.stalls = False
    hub.requests.clear()
    code, _, err = prepare()
    assert code == 0, err
    assert hub.ranges() == [f"bytes={had}-", None]


def _wait_for(path: Path, size: int, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if path.exists() and path.stat().st_size >= size:
            return
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise AssertionError(f"{path} never had {size} bytes")


def test_a_server_without_ranges_sends_all_of_it_again(hub: Hub, prepare: Callable[..., Outcome], tmp_path: Path):
    hub.knows_ranges = False
    hub.breaks = [len(TEXTS[1]), 3 * CHUNK]
    code, _, err = prepare()
    assert code == 0, err
    assert kept(tmp_path, TRAIN).read_bytes() == TEXTS[0]


def test_other_bytes_are_refused_until_they_are_deleted(hub: Hub, prepare: Callable[..., Outcome], tmp_path: Path):
    damaged = TEXTS[0].replace(b"a", b"b", 1)
    hub.put(TRAIN, damaged)
    partial = kept(tmp_path, TRAIN, ".incomplete")
    for _ in range(2):
        last = refused(prepare(), tmp_path)
        assert f"error: {partial}: sha256 {hashlib.sha256(damaged).hexdigest()} is not {TRAIN.sha256}" in last
        assert last.endswith("delete it and try again")
    hub.put(TRAIN, TEXTS[0])
    partial.unlink()
    assert prepare()[0] == 0
    (tmp_path / "data/meta.json").rename(tmp_path / "data/other")
    kept(tmp_path, VAL).write_bytes(b"x")
    code, _, err = prepare("--out", tmp_path / "more")
    assert code == 2 and str(kept(tmp_path, VAL)) in err and VAL.sha256 in err


def test_more_than_there_should_be_is_refused(hub: Hub, prepare: Callable[..., Outcome], tmp_path: Path):
    partial = kept(tmp_path, VAL, ".incomplete")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(TEXTS[1] + b"x")
    assert f"{partial}: more than the {len(TEXTS[1]):,} bytes of {VAL.name}; delete it" in refused(prepare(), tmp_path)
    assert hub.requests == []


def test_something_else_that_answers_is_refused_at_once(hub: Hub, prepare: Callable[..., Outcome], tmp_path: Path):
    hub.put(VAL, b"<html>Please log in</html>")
    last = refused(prepare(), tmp_path)
    assert f"does not have the {len(TEXTS[1]):,} bytes of {VAL.name}; see whether this network wants a login" in last
    hub.put(VAL, TEXTS[1])
    hub.tells_commit = False
    assert refused(prepare(), tmp_path) == last
    assert hub.ranges() == []


def test_a_size_that_the_server_leaves_out_is_known(hub: Hub, prepare: Callable[..., Outcome], tmp_path: Path):
    hub.tells_size = False
    code, _, err = prepare()
    assert code == 0, err
    assert kept(tmp_path, TRAIN).read_bytes() == TEXTS[0]


def test_offline_it_names_the_way_out(prepare: Callable[..., Outcome], tmp_path: Path):
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        last = refused(prepare(endpoint="http://127.0.0.1:9", **more), tmp_path)
        assert f"cannot download {VAL.filename} of somebody/texts (" in last
        page = f"http://127.0.0.1:9/datasets/somebody/texts/tree/{VAL.revision}"
        files = f"both files of --text {TRAIN.filename} --val-text {VAL.filename}"
        assert last.endswith(
            f"go online and run the same command again, or with a browser download {files}, from {page}"
        )


def test_the_hubs_own_cache_is_looked_into(hub: Hub, prepare: Callable[..., Outcome], tmp_path: Path):
    for file, text in zip(FILES, TEXTS, strict=True):
        path = tmp_path / f"home/hub/datasets--somebody--texts/snapshots/{file.revision}/{file.filename}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    code, _, err = prepare()
    assert code == 0, err
    assert hub.requests == []


@pytest.mark.parametrize(
    "place", ["hub/datasets--somebody--texts/snapshots/{}/{}", "assets/liquidnet/somebody--texts/{}/{}"]
)
def test_wrong_bytes_in_a_cache_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str):
    """In the hub's cache and in ours; as many as there should be, so that only a checksum tells."""
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", tmp_path / "assets")
    monkeypatch.setattr(module, "_fetch", lambda *_: pytest.fail("it was downloaded again over what is there"))
    find = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda *given, **named: find(*given, cache_dir=tmp_path / "hub", **named),
    )
    path = tmp_path / place.format(VAL.revision, VAL.filename)
    path.parent.mkdir(parents=True)
    path.write_bytes(TEXTS[1])
    assert module.download(VAL, "") == path
    path.write_bytes(TEXTS[1][:-1] + b"~")
    with pytest.raises(
        ValueError, match=rf"sha256 \w+ is not {VAL.sha256}, that of {VAL.filename} .*; delete it and try again"
    ):
        module.download(VAL, "")


def test_two_never_write_one_file(prepare: Callable[..., Outcome], tmp_path: Path):
    partial = kept(tmp_path, VAL, ".incomplete")
    partial.parent.mkdir(parents=True)
    with FileLock(f"{partial}.lock"):
        assert f"{partial}: another process is downloading it; wait" in refused(prepare(), tmp_path)


def test_room_is_asked_for_before(tmp_path: Path):
    large = replace(TRAIN, size=1 << 60)
    with pytest.raises(OSError, match=r"a-train\.txt needs 1,152,921,504,606,846,969 bytes more, .*set HF_HOME"):
        module._require_space(large, tmp_path / "partial", 7)
    module._require_space(large, tmp_path / "partial", large.size)
