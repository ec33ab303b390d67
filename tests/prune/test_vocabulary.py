"""Fewer tokens: the same splitting of every text whose tokens stay, all other texts still written, the same logits."""

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as kinds
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks import _families
from stages.export import gguf
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import models
from stages.prune import vocabulary
from stages.prune.parts import subwords
from stages.tokenize import unigram
from stages.tokenize.parts import gguf_tokenizer

PARENTS = {"model": "pretrain/base", "tokens": "tokenize/bpe"}
HARD = [
    "",
    " ",
    "  \n\t x",
    "日本語",
    "😀👩‍👩‍👧",
    "1234 3.14",
    "naïve",
    "\u2581 x",
    "\x00\x07",
    "مرحبا",
    "<|user|>",
    "</s><s>",
    "a" * 50,
    "<unused>",
    "<|tool|>",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ 'Quux:\n' + m.content }}{{ eos_token }}{% endfor %}"
)


def make(**more):
    return vocabulary.Vocabulary(method="vocabulary", **PARENTS, **more)


def whole_words(tokenizer, texts):
    """As Llama 3: a word that is a token is one, wherever merges would lead; here some that they don't lead to."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["ignore_merges"] = True
    vocab, words = state["model"]["vocab"], {f"Ġ{word}" for text in texts for word in text.split() if word.isalpha()}
    vocab |= {word: len(vocab) + i for i, word in enumerate(sorted(words - vocab.keys())[::7])}
    return wrapped(Tokenizer.from_str(json.dumps(state)), bos="<|bos|>", eos="<|end|>", pad="<|pad|>")


def sentencepiece(_, texts):
    """As Llama 2 and Gemma: spaces as U+2581, unknown characters as bytes, every split of a token is a merge."""
    tokenizer = Tokenizer(kinds.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    special = ["<unk>", "<s>", "</s>", *subwords.BYTES]
    trained = [text.replace(" ", " \u2581") for text in texts]  # words apart, or a text would be one
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.normalizer = None
    tokenizer.train_from_iterator(
        trained, trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    )
    state = json.loads(tokenizer.to_str())
    vocab = state["model"]["vocab"]
    splits = [(vocab[token], token[:i], token[i:]) for token in vocab for i in range(1, len(token))]
    state["model"]["merges"] = [[a, b] for _, a, b in sorted(splits) if a in vocab and b in vocab]
    state["pre_tokenizer"], state["added_tokens"] = None, state["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", vocab["<s>"]), ("</s>", vocab["</s>"])]
    )
    tokenizer.add_tokens([AddedToken("<|user|>", special=True), AddedToken("<unused>"), AddedToken("<|tool|>")])
    return wrapped(tokenizer, bos="<s>", eos="</s>", unk="<unk>")


def own_unigram(_, texts):
    entry = {"method": "unigram", "documents": "data/a", "problems": "data/b", "vocab_size": 700}
    return unigram.Unigram.model_validate(entry).train(texts)


def t5(_, texts):
    """Characters that were never seen are unknown, and always were."""
    tokenizer = Tokenizer(kinds.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "</s>", "<pad>"]
    trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<pad>", 2))
    return wrapped(tokenizer, eos="</s>", unk="<unk>", pad="<pad>")


def wrapped(tokenizer, **special):
    names = {f"{name}_token": token for name, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **names)


MADE = {
    "bpe": lambda tokenizer, _: tokenizer,
    "ignore_merges": whole_words,
    "sentencepiece": sentencepiece,
    "unigram": own_unigram,
    "t5": t5,
}


@pytest.fixture(scope="module", params=MADE)
def any_tokenizer(request, tokenizer, texts):
    return MADE[request.param](tokenizer, texts)


@pytest.fixture(scope="module")
def model(tokenizer):
    return _families.make("llama", tokenizer)


class Nameless:
    """No config, so no numbers in it."""

    config = generation_config = None


def counted(tokenizer, texts):
    total = torch.zeros(len(tokenizer), dtype=torch.int64)
    for text in texts:
        total += torch.tensor(tokenizer.encode(text)).bincount(minlength=len(total))
    return total


def examples(tokenizer, kept, texts):
    """Texts, pieces of them that begin and end anywhere, and tokens that stay in any order."""
    draw = random.Random(0)
    pool, joined = [tokenizer.decode([number]) for number in kept], " ".join(texts)
    pieces = [joined[at : at + draw.randint(1, 12)] for at in (draw.randrange(len(joined)) for _ in range(3000))]
    mixed = ["".join(draw.choices(pool, k=draw.randint(1, 6))) for _ in range(3000)]
    return [*HARD, *texts, *pieces, *mixed]


@pytest.mark.parametrize("target", [{}, {"count": 4}, {"size": 420}, {"count": 9, "multiple": 64}], ids=str)
def test_a_text_of_tokens_that_stay_is_split_as_before_and_any_other_is_still_written(any_tokenizer, texts, target):
    kept = make(**target).choose(Nameless, any_tokenizer, counted(any_tokenizer, texts[:4]))
    smaller, new = subwords.cut(any_tokenizer, kept), {old: number for number, old in enumerate(kept)}
    assert len(smaller) == len(kept) < len(any_tokenizer)
    same = 0
    for text in examples(any_tokenizer, kept, texts):
        old, found = (each.encode(text, add_special_tokens=False) for each in (any_tokenizer, smaller))
        if set(old) <= new.keys():
            assert found == [new[number] for number in old], repr(text)
            same += 1
        assert smaller.decode(found) == any_tokenizer.decode(old), repr(text)
    assert same > 1000


def test_the_smaller_tokenizer_is_the_same_after_saving(any_tokenizer, texts, tmp_path):
    kept = make().choose(Nameless, any_tokenizer, counted(any_tokenizer, texts[:4]))
    smaller = subwords.cut(any_tokenizer, kept)
    smaller.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == smaller.get_vocab() and again.chat_template == any_tokenizer.chat_template
    assert [again.encode(text) for text in HARD] == [smaller.encode(text) for text in HARD]
    for name in ("bos", "eos", "pad", "unk"):
        assert getattr(again, f"{name}_token") == getattr(any_tokenizer, f"{name}_token")
    pair, new = any_tokenizer("a", "b")["input_ids"], {old: number for number, old in enumerate(kept)}
    assert again("a", "b")["input_ids"] == [new[number] for number in pair]


def test_merges_between_stay_by_hand():
    """abcd is merged by ab, cd: these stay though nobody counts them; bc, which no token that stays needs, goes."""
    vocab = {token: i for i, token in enumerate(["a", "b", "c", "d", "ab", "bc", "cd", "abcd", "abc"])}
    merges = [("a", "b"), ("b", "c"), ("c", "d"), ("ab", "cd"), ("ab", "c")]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(kinds.BPE(vocab, merges)))
    kept = make().choose(Nameless, tokenizer, torch.tensor([0] * 7 + [5, 0]))
    assert [token for token, number in vocab.items() if number in kept] == ["a", "b", "c", "d", "ab", "cd", "abcd"]
    smaller = subwords.cut(tokenizer, kept)
    assert smaller.convert_ids_to_tokens(smaller.encode("abcdbcdabc")) == [
        "abcd",
        "b",
        "cd",
        "ab",
        "c",
    ]
    assert json.loads(smaller.backend_tokenizer.to_str())["model"]["merges"] == [["a", "b"], ["c", "d"], ["ab", "cd"]]


def test_the_most_frequent_stay_and_the_number_is_a_multiple(tokenizer, texts):
    count = counted(tokenizer, texts)
    kept = make(size=400).choose(Nameless, tokenizer, count)
    gone = set(range(len(tokenizer))) - set(kept)
    path = subwords.Paths(subwords.state_of(tokenizer))
    assert len(kept) == 400
    for number in gone:  # each would have cost more than its rarest neighbour in the order, or there was no room
        assert len(path(number) - set(kept)) > 0
    needed = set(make(count=10**9).choose(Nameless, tokenizer, count))
    least = min(int(count[number]) for number in set(kept) - needed if not any(number in path(n) - {n} for n in kept))
    assert all(count[number] <= least or len(path(number) - set(kept)) > 1 for number in gone)
    assert len(make(count=10**9, multiple=50).choose(Nameless, tokenizer, count)) == -(-len(needed) // 50) * 50


def test_what_the_chat_template_writes_stays(tokenizer, texts):
    asked = copy.deepcopy(tokenizer)
    asked.chat_template = {
        "default": TEMPLATE,
        "tool_use": "{% if tools %}\n{{ 'the of \u00e4' }}{% endif %} and there",
    }
    kept = make(count=10**9).choose(Nameless, asked, counted(asked, texts))
    for text in ("Quux:\n", "the of \u00e4", " and there", "assistant", "<|user|>"):
        assert set(asked.encode(text, add_special_tokens=False)) <= set(kept), text


@pytest.mark.parametrize("family", ["llama", "gemma3", "granite", "gpt2", "cohere2", "mamba2"])
def test_the_logits_are_those_of_the_whole_model_at_the_tokens_that_stay(family, tokenizer, rows, given, tmp_path):
    compare_logits(_families.make(family, tokenizer), tokenizer, rows, given, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", _families.FAMILIES)
def test_the_logits_of_every_family_are_those_of_the_whole_model(family, tokenizer, rows, given, tmp_path):
    compare_logits(_families.make(family, tokenizer), tokenizer, rows, given, tmp_path)


def test_rows_that_no_token_has_are_cut_and_so_is_the_bias_of_a_head(tokenizer, rows, given, tmp_path):
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    phi = PhiForCausalLM(PhiConfig(vocab_size=len(tokenizer) + 64, **sizes, **ids)).eval()
    torch.nn.init.normal_(phi.lm_head.bias)
    smaller = compare_logits(phi, tokenizer, rows, given, tmp_path)
    assert len(smaller.lm_head.bias) == smaller.lm_head.weight.shape[0] == smaller.config.vocab_size < len(tokenizer)


def compare_logits(whole, tokenizer, rows, given, folder):
    """In memory and after reading it back; greedy text too, so that a cache and the ends of a text are right."""
    before, own = copy.deepcopy(whole), given(rows)
    smaller = make().prune(whole, own)
    old = tokenizer.get_vocab()
    kept = torch.tensor(
        [old[token] for token, _ in sorted(own.tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
    )
    ids = torch.searchsorted(kept, rows[:4])
    assert torch.equal(kept[ids], rows[:4]), "what was counted stays"
    with torch.no_grad():
        expected = before(rows[:4]).logits[..., kept]
        torch.testing.assert_close(smaller(ids).logits, expected, atol=2e-6, rtol=2e-6)
        models.save(smaller, own.tokenizer, folder / "model")
        stored = models.load(folder / "model")
        torch.testing.assert_close(stored(ids).logits, expected, atol=2e-6, rtol=2e-6)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config, earlier in ((stored.config, before.config), (stored.generation_config, before.generation_config)):
            number, past = getattr(config, name), getattr(earlier, name)
            assert number is None and past is None or kept[number] == past, name
    return stored


def test_all_numbers_in_the_configs_are_renumbered(model, tokenizer, rows, given, tmp_path):
    last = len(tokenizer) - 1
    model = copy.deepcopy(model)
    model.config.eos_token_id = [2, last]
    model.generation_config.eos_token_id, model.generation_config.suppress_tokens = [2, last], [last - 1]
    model.generation_config.bad_words_ids = [[last - 2, 2]]
    own = given(rows)
    smaller = make(count=10**6).prune(model, own)
    models.save(smaller, own.tokenizer, tmp_path / "model")
    stored, end = models.load(tmp_path / "model"), len(own.tokenizer) - 1
    assert end < last and stored.config.eos_token_id == stored.generation_config.eos_token_id == [2, end]
    assert (stored.generation_config.suppress_tokens, stored.generation_config.bad_words_ids) == (
        [end - 1],
        [[end - 2, 2]],
    )


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ({"size": 512}, "size is 512, but pretrain/base has no more than 512 tokens"),
        (
            {"size": 100},
            r"size is 100, but pretrain/base needs \d+ tokens for alphabet, special tokens and chat template",
        ),
    ],
)
def test_a_size_that_cannot_be_is_refused(model, rows, given, target, complaint):
    with pytest.raises(UserError, match=complaint):
        make(**target).prune(copy.deepcopy(model), given(rows))


def test_a_size_beside_the_multiple_is_refused():
    with pytest.raises(ValueError, match="size is 100, which is no multiple of 64"):
        make(size=100, multiple=64)


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "BPE with marked subwords"])
def test_other_tokenizers_are_refused_by_name(model, rows, given, kind):
    built = {
        "WordPiece": kinds.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"),
        "WordLevel": kinds.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        "BPE with marked subwords": kinds.BPE({"a</w>": 0, "a": 1}, [], end_of_word_suffix="</w>"),
    }
    own = given(rows)
    own.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(built[kind]))
    with pytest.raises(UserError, match=f"pretrain/base has a tokenizer of kind {kind}; vocabulary can cut: BPE"):
        make().choose(copy.deepcopy(model), own.tokenizer, torch.zeros(3))


def test_a_number_that_no_token_has_is_refused(model, rows, given):
    model = copy.deepcopy(model)
    model.config.pad_token_id = 600
    with pytest.raises(UserError, match="pretrain/base: its config has pad_token_id 600, its tokenizer no such token"):
        make().prune(model, given(rows))


def test_a_network_that_knows_tokens_elsewhere_too_is_refused(tokenizer, rows, given):
    """Gemma 3n has an embedding for every layer."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    more = {"num_key_value_heads": 1, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 16, "laurel_rank": 4}
    names = {"vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer), "bos_token_id": 1}
    kinds_of_layers = {"layer_types": ["full_attention"] * 2, "activation_sparsity_pattern": [0.0, 0.0]}
    config = Gemma3nTextConfig(**sizes, **more, **names, **kinds_of_layers, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    model = Gemma3nForCausalLM(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    with pytest.raises(
        UserError, match="pretrain/base is a gemma3n_text; vocabulary can cut networks that know tokens by"
    ):
        make().prune(model, given(rows))


@pytest.mark.slow
def test_llama_cpp_splits_text_as_the_smaller_tokenizer_does(llama, tokenizer, texts, rows, given, tmp_path):
    own = given(rows)
    smaller = make(multiple=64).prune(llama(len(tokenizer)), own)
    gguf.GGUF(method="gguf", type="F16", **PARENTS).write(smaller, own.tokenizer, tmp_path, torch.empty(0, 0))
    runtime = open_runtime(tmp_path)
    for text in [*HARD[1:], *texts]:
        expected = own.tokenizer.encode(text, add_special_tokens=False)
        assert runtime.model.tokenize(text, add_bos=False, special=True) == expected, repr(text)


SMOLLM2 = Path("models/smollm2.gguf")


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_file(), reason="make models/smollm2.gguf")
def test_smollm2_splits_as_before(texts):
    tokenizer = gguf_tokenizer.read(SMOLLM2, str(SMOLLM2))
    test_a_text_of_tokens_that_stay_is_split_as_before_and_any_other_is_still_written(
        tokenizer, texts, {"multiple": 64}
    )
