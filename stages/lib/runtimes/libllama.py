"""llama.cpp's C functions (llama.h, ggml.h) as the library inside `xllamacpp` exports them: its Python offers a server
only, which gives neither the logits of every position nor token ids.

Settings are structures that grow with every release; only the first four numbers of a context's are touched, so room is
left for the rest. Handles are freed by `close`, a context before its model.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np


class Settings(ctypes.Structure):
    """Begins with n_ctx, n_batch, n_ubatch, n_seq_max in a context's; is not looked into in a model's."""

    _fields_ = [("numbers", ctypes.c_uint32 * 256)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


POINTER, TEXT, INTEGER, LONG, BOOL = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_bool
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {  # function -> what it returns, what it takes
    "llama_log_set": (None, [POINTER, POINTER]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (Settings, []),
    "llama_model_load_from_file": (POINTER, [TEXT, Settings]),
    "llama_model_get_vocab": (POINTER, [POINTER]),
    "llama_model_free": (None, [POINTER]),
    "llama_model_n_params": (ctypes.c_uint64, [POINTER]),
    "llama_model_size": (ctypes.c_uint64, [POINTER]),
    "llama_vocab_n_tokens": (INTEGER, [POINTER]),
    "llama_tokenize": (INTEGER, [POINTER, TEXT, INTEGER, ctypes.POINTER(INTEGER), INTEGER, BOOL, BOOL]),
    "llama_context_default_params": (Settings, []),
    "llama_init_from_model": (POINTER, [POINTER, Settings]),
    "llama_set_n_threads": (None, [POINTER, INTEGER, INTEGER]),
    "llama_n_ctx_seq": (ctypes.c_uint32, [POINTER]),
    "llama_get_memory": (POINTER, [POINTER]),
    "llama_memory_clear": (None, [POINTER, BOOL]),
    "llama_batch_init": (Batch, [INTEGER, INTEGER, INTEGER]),
    "llama_batch_free": (None, [Batch]),
    "llama_decode": (INTEGER, [POINTER, Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [POINTER, INTEGER]),
    "llama_free": (None, [POINTER]),
    "ggml_quantize_chunk": (ctypes.c_size_t, [INTEGER, POINTER, POINTER, LONG, LONG, LONG, POINTER]),
}


@cache
def library() -> Any:
    from xllamacpp import xllamacpp  # pyright: ignore[reportAttributeAccessIssue]

    functions = ctypes.CDLL(xllamacpp.__file__)
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    functions.llama_log_set(ctypes.cast(silence(), POINTER), None)
    functions.llama_backend_init()
    return functions


@cache
def silence() -> Any:
    """llama.cpp reports every tensor on stderr; what it calls instead must live as long as the process."""
    return ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


class Model:
    def __init__(self, path: str):
        llama = library()
        self.handle = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        if not self.handle:
            raise RuntimeError("llama.cpp can't load the file")
        self.vocabulary = llama.llama_model_get_vocab(self.handle)
        self.n_vocab = llama.llama_vocab_n_tokens(self.vocabulary)

    def size(self) -> tuple[int, int]:
        """Parameters of the file, and the bytes that their tensors take."""
        return library().llama_model_n_params(self.handle), library().llama_model_size(self.handle)

    def tokenize(self, text: str, add_bos: bool = False, special: bool = True) -> list[int]:
        """Ids of a text, in which control tokens are such if `special` and plain text if not."""
        content = text.encode()
        room = len(content) + 2  # no token without a byte, but for the first and the last
        ids = (INTEGER * room)()
        count = library().llama_tokenize(self.vocabulary, content, len(content), ids, room, add_bos, special)
        return list(ids[:count])

    def close(self) -> None:
        library().llama_model_free(self.handle)


class Context:
    """A cache of its own for each of `sequences`, `tokens` long."""

    def __init__(self, model: Model, tokens: int, sequences: int, threads: int):
        llama = library()
        settings = llama.llama_context_default_params()
        settings.numbers[0] = settings.numbers[1] = tokens * sequences
        settings.numbers[3] = sequences
        self.handle = llama.llama_init_from_model(model.handle, settings)
        if not self.handle or llama.llama_n_ctx_seq(self.handle) < tokens:
            raise RuntimeError(f"llama.cpp made no context of {sequences} x {tokens} tokens")
        self.vocabulary_size = model.n_vocab
        llama.llama_set_n_threads(self.handle, threads, threads)

    def clear(self) -> None:
        library().llama_memory_clear(library().llama_get_memory(self.handle), True)

    def decode(self, steps: Sequence[tuple[int, int, int, bool]]) -> np.ndarray:
        """Of (sequence, position, token, wanted): the logits after every wanted token, (N, V) float32."""
        llama = library()
        batch = llama.llama_batch_init(len(steps), 0, 1)
        try:
            batch.n_tokens = len(steps)
            for i, (sequence, position, token, wanted) in enumerate(steps):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if code := llama.llama_decode(self.handle, batch):
                raise RuntimeError(f"llama_decode returned {code}")
        finally:
            llama.llama_batch_free(batch)
        rows = [llama.llama_get_logits_ith(self.handle, i) for i, step in enumerate(steps) if step[3]]
        return np.stack([np.ctypeslib.as_array(row, (self.vocabulary_size,)) for row in rows])

    def close(self) -> None:
        library().llama_free(self.handle)


def quantize(weight: np.ndarray, type: int, importance: np.ndarray | None = None) -> np.ndarray:
    """Rows of float32 as the blocks of a ggml type, (..., bytes of a row) uint8; `importance` is a weight a column."""
    import gguf

    width = weight.shape[-1]
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    blocks = np.empty(gguf.quant_shape_to_byte_shape(weight.shape, gguf.GGMLQuantizationType(type)), dtype=np.uint8)
    minds = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32).ctypes.data
    rows = weight.size // width
    library().ggml_quantize_chunk(type, weight.ctypes.data, blocks.ctypes.data, 0, rows, width, minds)
    return blocks
