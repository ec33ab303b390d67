"""DVC trusts what it has stored: here it hashes first."""

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any


@cache
def distrust_cache() -> None:
    """Have DVC hash what its cache holds before it is used: it takes for whole every file that is read-only, and every
    record of a run that is YAML, and so gives a damaged stage back as a finished one. Hashed, such a file is removed,
    and the stage runs. So is what a remote gives, which DVC takes for whole where no `verify` is configured."""
    from dvc.data_cloud import Remote
    from dvc.stage.cache import StageCache, _get_cache_hash, _get_stage_hash
    from dvc.utils.serialize import EncodingError
    from dvc_data.hashfile.db import HashFileDB
    from dvc_data.hashfile.db.local import LocalHashFileDB
    from dvc_data.hashfile.state import StateNoop

    read, newest, opened = StageCache._load_cache, StageCache._load, Remote.__init__

    def check(self: LocalHashFileDB, oid: str, check_hash: bool = True, _info: dict[str, Any] | None = None) -> Any:
        known, self.state = self.state, StateNoop()  # it takes a file for the same by its size and times
        try:
            return HashFileDB.check(self, oid, check_hash, _info)
        finally:
            self.state = known

    def load(self: StageCache, key: str, value: str) -> Any:
        try:
            found = read(self, key, value)
        except EncodingError:
            found = {}
        if found is not None and _get_cache_hash(found) != value:
            Path(self._get_cache_path(key, value)).unlink()
            return None
        return found

    def load_newest(self: StageCache, stage: Any) -> Any:
        if key := _get_stage_hash(stage):
            with suppress(OSError):
                Path(self._get_cache_dir(key)).rmdir()  # if its records are all gone: DVC would fail there
        return newest(self, stage)

    def open_verifying(self: Remote, *args: Any, **config: Any) -> None:
        opened(self, *args, **config | {"verify": True})

    Remote.__init__ = open_verifying
    LocalHashFileDB.check, StageCache._load_cache, StageCache._load = check, load, load_newest
