"""A folder's tokenizer files, read so that text gets the numbers that the model was trained on.

tokenizer.json says everything and is taken as it is: the class of a model would build its own rules instead. From a
SentencePiece model transformers makes one, but forgets that some put a space before the first word; so what comes out
is compared with SentencePiece itself.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.frame.errors import UserError
from stages.lib.store import loading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SENTENCEPIECE = "tokenizer.model"
KNOWN = ("tokenizer.json", SENTENCEPIECE, "vocab.json")  # the last with merges.txt
HARD = (
    "The capital of France is Paris.",
    "12345 a 1b2 3.14 \N{VULGAR FRACTION ONE HALF} \N{SUPERSCRIPT TWO}, wait .",
    "  two  spaces\n\n\ttab \r\n end  ",
    "na\xefve \u65e5\u672c\u8a9e \U0001f642 don't I'll",
)


def load(folder: Path, source: str) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((folder / name).is_file() for name in KNOWN):
        raise UserError(f"{source} has no tokenizer: none of {', '.join(KNOWN)}; name the model it was trained from")
    loading.quiet()
    with loading.opening(source):
        if not (folder / "tokenizer.json").is_file() and (folder / SENTENCEPIECE).is_file():
            return from_sentencepiece(folder, source)
        exact = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        if exact.eos_token is None:  # named by the class of the model alone, as GPT-2's are
            usual: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            for name, token in usual.special_tokens_map.items():
                if isinstance(token, str) and token in exact.get_vocab():
                    setattr(exact, name, token)
    return exact


def from_sentencepiece(folder: Path, source: str) -> "PreTrainedTokenizerFast":
    import sentencepiece
    from tokenizers import decoders, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE))
    made = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if model.encode("x", out_type=str)[0].startswith("▁"):
        backend = made.backend_tokenizer
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(parts)
    if (begin := made.bos_token) and made.init_kwargs.get("add_bos_token", True):
        single, pair = f"{begin} $A", f"{begin} $A {begin}:1 $B:1"
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(begin, made.bos_token_id)]
        )
    if wrong := [text for text in HARD if made.encode(text, add_special_tokens=False) != model.encode(text)]:
        raise UserError(
            f"{source} has only {SENTENCEPIECE}, of which transformers makes a tokenizer with other numbers "
            f"(for {wrong[0]!r}): name a revision with tokenizer.json"
        )
    return made
