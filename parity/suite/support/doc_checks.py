"""What README and docs say of commands, flags, files and links, held against what there is."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from parity.proof.environment import ROOT
from tools.cli.commands import COMMANDS
from tools.cli.main import main, parse

#: In the order in which a reader follows them; their commands run in one place, one after the other.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
PAGES += sorted((ROOT / "examples").rglob("*.md"))

_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]*")
_FILE = re.compile(r"(?<!\w/)(?:parity|recipes|spec|tools|docs|examples|torch_impl|jax_impl)/[\w./]*")
#: A name that stands alone: `sequential.py`, `scan/__init__.py`, `ops/rowwise/`.
_ALONE = re.compile(r"(?:[\w.-]+/)*[\w-]+(?:\.(?:py|sh|toml|svg)|/)")
# What a run leaves.
_RUN = re.compile(r"(?:checkpoints|demo)/")
_MODULE = re.compile(r"(?<![\w./])(?:parity|spec|tools|torch_impl|jax_impl)(?:\.\w+)+")
# pip's, torchrun's, XLA's, pytest's and the modules' own.
FOREIGN = {"--extra-index-url", "--nproc-per-node", "--xla", "--check", "--write", "--help", "--version"}
_TRAINER = re.compile(r"^(?:torchrun .*|python )-m (torch|jax)_impl\.train ")


def blocks(text: str, kind: str) -> list[str]:
    """The contents of the fenced blocks of a kind, such as `console run`."""
    return [content for info, content in _BLOCK.findall(text) if info == kind]


def commands(text: str, kind: str) -> list[str]:
    """The commands in such blocks, each in one line."""
    return [
        line
        for block in blocks(text, kind)
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]


def problems(text: str, page: Path) -> Iterator[str]:
    """Everything in a page that is not so.

    Args:
        text: of the page.
        page: where it lies, for its links.
    """
    shell = [line for kind in ("console run", "console", "") for line in commands(text, kind)]
    for line in [*shell, *re.findall(r"^- run: (.*)$", text, re.MULTILINE)]:
        yield from _of_command(line)
    prose = _BLOCK.sub("", text)
    for span in _SPAN.findall(text):
        yield from _of_span(span)
    known = set().union(*map(flags, COMMANDS)) | FOREIGN
    yield from (f"no command has {flag}" for flag in _FLAG.findall(prose) if flag.replace("_", "-") not in known)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        if not (page.parent / link).exists():
            yield f"no file {link}"


def tree(block: str) -> Iterator[str]:
    """The directories that a drawn tree names: two at the top stand for each other, those below are theirs."""
    tops: list[str] = []
    for line in block.splitlines():
        names = re.findall(r"(?<!\S)([a-z_]+)/(?=\s)", line)
        if not line.startswith(" "):
            tops = names
            yield from names
        else:
            yield from (f"{top}/{name}" for name in names for top in tops[:1])


@cache
def flags(command: str) -> frozenset[str]:
    """The flags that a command's --help lists."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return frozenset(_FLAG.findall(output.getvalue()))


@cache
def _of_command(line: str) -> tuple[str, ...]:
    """What the real parser says of a line of shell; lines of other programs are left alone."""
    line = _TRAINER.sub(r"liquidnet train \1 ", re.sub(r"^(?:env )?(?:[A-Z_]+=\S+ )*", "", line.strip()))
    line = re.sub(r"^python tools/convert\.py ", "liquidnet convert ", line)
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a figure, a formula
        return ()
    if words[:1] == ["make"]:
        return () if _is_target(words[1]) else (f"no target {words[1]}",)
    if words and words[0].startswith("recipes/") and words[0].endswith(".sh"):
        return () if (ROOT / words[0]).is_file() else (f"no recipe {words[0]}",)
    if words[:1] != ["liquidnet"]:
        return ()
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(io.StringIO()):
            parse(words[1:])
    except SystemExit as stop:
        if stop.code:
            return (f"{line}: {output.getvalue().strip()}",)
    return ()


def _of_span(span: str) -> Iterator[str]:
    """A span names a command with some of its flags, a target, or files; what stands for something else is capital."""
    words = span.split()
    if words[0] == "liquidnet" and len(words) > 1 and words[1].islower() and words[1][0] != "-":
        if words[1] not in COMMANDS:
            yield f"no command {words[1]}"
        else:
            known = flags(words[1])
            yield from (f"{span}: no {flag}" for flag in _FLAG.findall(span) if flag not in known | {"--help"})
    if words[0] == "make" and len(words) > 1 and not _is_target(words[1]):
        yield f"no target {words[1]}"
    for name in _FILE.findall(span):
        if "<" not in span and not (ROOT / name.rstrip(".")).exists():
            yield f"no file {name}"
    if _ALONE.fullmatch(span) and not _RUN.match(span) and not any(path.endswith(f"/{span}") for path in _paths()):
        yield f"no file {span}"
    yield from (f"no module or name {name}" for name in _MODULE.findall(span) if not _is_name(name))


@cache
def _paths() -> tuple[str, ...]:
    """Every file and directory of the project, as `/spec/data.py` and `/spec/checkpoint/`."""
    tops = ("docs", "examples", "jax_impl", "parity", "recipes", "spec", "tools", "torch_impl")
    deep = (path for top in tops for path in ((ROOT / top), *(ROOT / top).rglob("*")))
    return tuple(f"/{path.relative_to(ROOT)}{'/' * path.is_dir()}" for path in (*deep, *ROOT.glob("*.*")))


def _is_name(dotted: str) -> bool:
    """Whether it is a module, or something that one mentions: `tools.cli.main`, `spec.initial_parameters`."""
    place, names = ROOT, dotted.split(".")
    while names and (place / names[0]).is_dir():
        place /= names.pop(0)
    file = place / "__init__.py"
    if names and (place / f"{names[0]}.py").is_file():
        file = place / f"{names.pop(0)}.py"
    return not names or (file.is_file() and re.search(rf"\b{names[0]}\b", file.read_text("utf-8")) is not None)


def _is_target(name: str) -> bool:
    return re.search(rf"^{re.escape(name)}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None
