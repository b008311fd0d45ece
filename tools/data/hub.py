"""Files of the Hugging Face hub, each pinned to a revision and a checksum; a download that broke off goes on."""

import hashlib
import io
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from spec.checkpoint.files import fsync
from tools.cli.errors import first_line
from tools.cli.file_lock import exclusive_lock
from tools.cli.progress import Bar, progress


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, and what its bytes must be."""

    repository: str
    revision: str
    filename: str
    size: int
    sha256: str
    repository_type: str = "model"

    @property
    def name(self) -> str:
        """The address that programs of the hub understand, revision included."""
        folder = "" if self.repository_type == "model" else f"{self.repository_type}s/"
        return f"hf://{folder}{self.repository}@{self.revision}/{self.filename}"


def download(file: HubFile, otherwise: str) -> Path:
    """Find a file in the hub's cache or in ours, or download it; what an earlier try left is not downloaded again.

    huggingface_hub's own `hf_hub_download` throws away what it has when it is killed, so only its transfer is used,
    `file_download.http_get` (huggingface_hub 0.30 or later).

    Args:
        file: which one.
        otherwise: which files to download with a browser instead, and which flags to name them with.

    Raises:
        OSError: if it cannot be downloaded, or there is no room for it.
        ValueError: if its bytes are others than expected, or another process is downloading it.
    """
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(
        file.repository, file.filename, revision=file.revision, repo_type=file.repository_type
    )
    if isinstance(cached, str):
        return _checked(Path(cached), file)
    folder = huggingface_hub.cached_assets_path("liquidnet", file.repository, file.revision)
    path = folder / file.filename
    if path.exists():
        return _checked(path, file)
    partial = folder / f"{file.filename}.incomplete"
    busy = f"{partial}: another process is downloading it; wait until it has ended"
    with exclusive_lock(Path(f"{partial}.lock"), busy), _Partial(partial) as target:
        _fetch(file, partial, target, otherwise)
        fsync(_checked(partial, file))
        os.replace(partial, path)
    return path


def _checked(path: Path, file: HubFile) -> Path:
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != file.sha256:
        raise ValueError(
            f"{path}: sha256 {digest} is not {file.sha256}, that of {file.filename} in {file.repository}; "
            "delete it and try again"
        )
    return path


class _Partial(io.FileIO):
    """A file that grows at its end and shows how far it is."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "a")
        self.bar: Bar | None = None

    def write(self, content: bytes, /) -> int:
        missing = memoryview(content)
        while missing:
            written = super().write(missing)
            missing = missing[written:]
            self._show(written)
        return len(content)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        # Where a server sends the whole file again, the transfer begins at the start.
        before = self.tell()
        self._show(super().seek(offset, whence) - before)
        return self.tell()

    def _show(self, amount: int) -> None:
        if self.bar is not None:
            self.bar.advance(amount)


def _fetch(file: HubFile, partial: Path, target: _Partial, otherwise: str) -> None:
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(
        file.repository, file.filename, repo_type=file.repository_type, revision=file.revision
    )
    if target.tell() > file.size:
        raise ValueError(f"{partial}: more than the {file.size:,} bytes of {file.name}; delete it and try again")
    _require_space(file, partial, target.tell())
    try:
        answered = _transfer(url, file, target)
    except KeyboardInterrupt:
        if kept := _kept(partial, file):
            print(f"{file.filename}: {kept}, and the download goes on from there", file=sys.stderr)
        raise
    except Exception as error:  # the hub's client and its transport share no base class
        kept = f"{kept}; " if (kept := _kept(partial, file)) else ""
        page = url.rsplit("/", 1)[0].replace("/resolve/", "/tree/")
        raise OSError(
            f"cannot download {file.filename} of {file.repository} ({first_line(error)}); {kept}"
            f"go online and run the same command again, or with a browser download {otherwise}, from {page}"
        ) from error
    if not answered:
        raise ValueError(
            f"{url}: what answers there does not have the {file.size:,} bytes of {file.name}; "
            "see whether this network wants a login, or what HF_ENDPOINT is"
        )


def _transfer(url: str, file: HubFile, target: _Partial) -> bool:
    """Get what is missing; False, and nothing is got, where the server does not seem to have the file."""
    import huggingface_hub
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars

    disable_progress_bars("huggingface_hub.http_get")
    found = huggingface_hub.get_hf_file_metadata(url)
    # What is sent compressed has no size before.
    if found.commit_hash is None or found.size not in (None, file.size):
        return False
    # Bytes of a compressed answer could not be counted, nor could it be gone on with.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    with progress(f"downloading {file.filename}, {file.size:,} bytes", file.size, target.tell()) as target.bar:
        http_get(url, target, resume_size=target.tell(), headers=headers, expected_size=file.size)
    return True


def _require_space(file: HubFile, partial: Path, kept: int) -> None:
    missing, free = file.size - kept, shutil.disk_usage(partial.parent).free
    if free < missing:
        raise OSError(
            f"{partial.parent}: {file.filename} needs {missing:,} bytes more, and the disk has {free:,}; "
            "free some, or set HF_HOME to a directory on another disk"
        )


def _kept(partial: Path, file: HubFile) -> str:
    kept = partial.stat().st_size
    return f"{kept:,} of {file.size:,} bytes are kept" if kept else ""
