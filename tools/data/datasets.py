"""Published data sets that come with a validation part of their own."""

from tools.data.documents import FileSource
from tools.data.hub import HubFile, download

#: Eldan and Li (2023), TinyStories: How Small Can Language Models Be and Still Speak Coherent English?
#: arXiv:2305.07759. License: CDLA-Sharing-1.0. Files for training and for validation.
DATASETS = {
    "tinystories": tuple(
        HubFile("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64", *described, "dataset")
        for described in (
            ("TinyStories-train.txt", 1924281556, "c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f"),
            ("TinyStories-valid.txt", 19_447_282, "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4"),
        )
    )
}


def open_dataset(name: str) -> tuple[FileSource, FileSource]:
    """The texts for training and for validation, downloaded where they are not here yet.

    Args:
        name: a key of DATASETS.

    Raises:
        OSError: if a file cannot be downloaded.
        ValueError: if a file is damaged.
    """
    files = DATASETS[name]
    otherwise = f"both files of --text {files[0].filename} --val-text {files[1].filename}"
    # The small one first: whatever is wrong shows before the long wait.
    val, train = (FileSource((download(file, otherwise),), (file.name,)) for file in reversed(files))
    return train, val
