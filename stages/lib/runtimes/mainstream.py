"""Mainstream llama.cpp, for the types that the fork which llama_cpp.py uses does not know: it would end the process.

`xllamacpp` offers a server only; what gives the logits of every position are llama.cpp's own functions (llama.h), which
its one library exports. Their settings are structures that grow with every release, of which only the first three
numbers are touched here, so room is left for the rest. Model and context are used as those of `ik_llama_cpp`.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.runtimes.llama_cpp import LlamaCpp, silence

if TYPE_CHECKING:
    from ik_llama_cpp._ctypes_api import llama_batch

TERNARY = (36, 37)  # TQ1_0 and TQ2_0, as general.file_type has them


def open_gguf(folder: Path) -> LlamaCpp:
    """The one of both that knows the file's types."""
    return (Mainstream if needed(folder / "model.gguf") else LlamaCpp)(folder)


def needed(file: Path) -> bool:
    """By the type that a GGUF names among the first entries of its header."""
    key = b"general.file_type"
    with file.open("rb") as stream:
        _, found, after = stream.read(4096).partition(key)
    return bool(found) and int.from_bytes(after[4:8], "little") in TERNARY  # the first four say: a whole number


class Settings(ctypes.Structure):
    """Begins with n_ctx, n_batch, n_ubatch in a context's; is not looked into in a model's."""

    _fields_ = [("numbers", ctypes.c_uint32 * 256)]


@cache
def library() -> Any:
    from ik_llama_cpp._ctypes_api import llama_batch  # starts with mainstream's fields and ends with more
    from xllamacpp import xllamacpp  # pyright: ignore[reportAttributeAccessIssue]

    pointer, functions = ctypes.c_void_p, ctypes.CDLL(xllamacpp.__file__)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_log_set": (None, [pointer, pointer]),
        "llama_backend_init": (None, []),
        "llama_model_default_params": (Settings, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, Settings]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (ctypes.c_int32, [pointer]),
        "llama_model_free": (None, [pointer]),
        "llama_context_default_params": (Settings, []),
        "llama_init_from_model": (pointer, [pointer, Settings]),
        "llama_set_n_threads": (None, [pointer, ctypes.c_int32, ctypes.c_int32]),
        "llama_n_ctx": (ctypes.c_uint32, [pointer]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_decode": (ctypes.c_int32, [pointer, llama_batch]),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [pointer, ctypes.c_int32]),
        "llama_free": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    functions.llama_log_set(ctypes.cast(silence(), pointer), None)
    functions.llama_backend_init()
    return functions


class Model:
    def __init__(self, path: str):
        llama = library()
        self.handle = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        if not self.handle:
            raise RuntimeError(f"llama.cpp can't load {path}")
        self.n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.handle))

    def close(self) -> None:
        library().llama_model_free(self.handle)


class Context:
    def __init__(self, model: Model, tokens: int, threads: int):
        llama = library()
        settings = llama.llama_context_default_params()
        settings.numbers[0] = settings.numbers[1] = tokens
        self.handle = llama.llama_init_from_model(model.handle, settings)
        if not self.handle or llama.llama_n_ctx(self.handle) < tokens:
            raise RuntimeError(f"llama.cpp made no context of {tokens} tokens")
        llama.llama_set_n_threads(self.handle, threads, threads)

    def kv_cache_clear(self) -> None:
        library().llama_memory_clear(library().llama_get_memory(self.handle), True)

    def decode(self, batch: "llama_batch") -> int:
        return library().llama_decode(self.handle, batch)

    def get_logits(self, index: int) -> Any:
        return library().llama_get_logits_ith(self.handle, index)

    def close(self) -> None:
        library().llama_free(self.handle)


class Mainstream(LlamaCpp):
    BATCH = 1  # sequences: it would split the cache evenly among them

    def open_model(self) -> Model:
        return Model(str(self.file))

    def open_context(self, tokens: int, threads: int) -> Context:
        return Context(self.model, tokens, threads)
