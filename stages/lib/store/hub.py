"""Somebody else's model or tokenizer: a local folder, a local GGUF file, or an id on the Hugging Face hub.

Opens the network only because params name a hub id and its revision.
"""

from pathlib import Path
from typing import Any

from pydantic import model_validator

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Params
from stages.lib.store import loading

# Of a hub id: no pickles
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "merges.txt", "README.md"]


class External(Params):
    """Where it is, and what it must be: `sha256` of a local file or folder, `revision` (a commit) of a hub id."""

    source: str
    sha256: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def pinned(self) -> "External":
        path = Path(self.source)
        if not path.exists():
            if self.sha256 and path.suffix == ".gguf":
                return self  # known by its hash, so it may still be on its way: `fetch` wants it there
            if self.source.count("/") != 1 or path.suffix in (".gguf", ".safetensors"):
                raise ValueError(f"'{self.source}' is neither a local folder or .gguf file nor a hub id like org/name")
            if not self.revision:
                raise ValueError(f"'{self.source}' is a hub id: name the commit to take as `revision`")
            if self.sha256:
                raise ValueError(f"'{self.source}' is a hub id, pinned by its `revision`: leave out `sha256`")
        elif path.is_file() and path.suffix != ".gguf":
            raise ValueError(f"'{self.source}' is neither a folder nor a .gguf file: name the folder it lies in")
        elif not self.sha256:
            raise ValueError(f"'{self.source}' is not pinned: put its `sha256`, {files.digest(path)}")
        elif self.revision:
            raise ValueError(f"'{self.source}' is local, pinned by its `sha256`: leave out `revision`")
        return self


class LocalFile(Params):
    """A file of the user's, pinned by what is in it."""

    source: str
    sha256: str | None = None

    @model_validator(mode="after")
    def pinned(self) -> "LocalFile":
        path = Path(self.source)
        if not path.is_file():
            raise ValueError(f"'{self.source}' is no file")
        if (found := files.digest(path)) != self.sha256:
            raise ValueError(f"'{self.source}' is not pinned to what it holds: its `sha256` is {found}")
        return self


def fetch(external: External) -> tuple[Path, dict[str, Any]]:
    """(folder, arguments for from_pretrained). The ordinary client downloads a hub id; a local path is checked."""
    path = Path(external.source)
    if external.sha256 and path.suffix == ".gguf" and not path.exists():
        raise UserError(f"params.yaml: {path} is missing; put it there (`make {path}`, if the Makefile knows it)")
    if path.exists():
        if (found := files.digest(path)) != external.sha256:
            raise UserError(f"params.yaml: {path} has sha256 {found}, not {external.sha256}: it changed")
        return (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    import huggingface_hub

    go_online()
    with loading.opening(external.source):
        folder = huggingface_hub.snapshot_download(
            external.source,
            revision=external.revision,
            allow_patterns=PATTERNS,
            ignore_patterns=["original/*", "consolidated*"],  # the same weights in another layout
        )
    return Path(folder), {}


def go_online() -> None:
    """Params name something that the hub has: the user asked for the network."""
    from datasets import config
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = False
