"""From data of your own to a profile that runs: what the rows hold, how the model will see them, what a run will cost.

python -m flows.init my-data.csv                            labels, fields to find, chats, preferences, plain texts
python -m flows.init my-data.csv --model models/mine.gguf   for a model of your own; else SmolLM2-135M-Instruct
python -m flows.init org/name --hub main                    a data set of the Hugging Face hub, pinned to its commit
python -m flows.init my-data.csv --minutes 20               no longer than that
python -m flows.lifecycle --profile my-data                 runs what it has written

Rows are read, cleaned and split by the data stage's own functions, and written through the tokenizer and the chat
template of the profile. Without a file of the default model its shape is known and lengths are bytes / 4.
"""

import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from flows import profiles, proposal
from flows.proposal import Lengths, Work
from stages.data import NAME, Dataset, classify
from stages.data import _recognise as rows_of
from stages.data._recognise import Asked, Prepared
from stages.lib.frame import energy, files, params
from stages.lib.frame.errors import UserError, command
from stages.lib.store.records import Record
from stages.lib.text import chat, labels, packing, templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BASE = "own-model"
MODEL = Path("models/smollm2.gguf")  # the base's
BYTES_A_TOKEN = 4  # of English, where no tokenizer is at hand
EXAMPLES, SHOWN = 5, 600  # rows that are shown, characters of each
CONTEXTS = (256, 512, 1024)  # of a training: the smallest that holds every row
ROWS = (256, 128, 64, 32, 16)  # tokens of a packed row: the largest that the held-out rows fill
HELD_OUT = 0.1  # of the rows
LEAST = 0.02  # share of the planned steps that is worth a run
SECONDS = 0.5  # that the machine is measured for
SIDE = 1024  # of the matrices that are multiplied


# The model


def pinned(model: Path) -> dict[str, str]:
    """The source of tokenizer and weights, and what it holds; of the base's model what the base says."""
    if model == MODEL:
        return dict(profiles.merged(BASE)["pretrain"]["teacher"]["external"])
    return {"source": str(model), "sha256": files.digest(model)}


def tokenizer_of(external: dict[str, str], target: Path) -> "PreTrainedTokenizerFast":
    """As the profile's tokenize stage reads it; without a file one whose tokens are bytes, in ChatML."""
    if not Path(external["source"]).exists():
        return bytes_in_chatml()
    from stages.tokenize.pretrained import Pretrained

    given = {"method": "pretrained", "external": external, "documents": "data/mine", "problems": "data/mine"}
    technique = params.technique("tokenize", "theirs", given, target)
    assert isinstance(technique, Pretrained)
    return technique.train([])


def bytes_in_chatml() -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(templates.NEEDS["chatml"]))
    begin, end = templates.NEEDS["chatml"]
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end)
    made.chat_template = templates.NAMED["chatml"]
    return made


# How the model sees a row


def shown(tokenizer: "PreTrainedTokenizerFast", row: Record) -> Iterator[str]:
    """A row as the model reads it, control tokens and all; of a preference both replies."""
    if "text" in row:
        yield "".join(map(str, tokenizer.convert_ids_to_tokens(chat.start(tokenizer)))) + row["text"]
        return
    for reply in (row[key] for key in ("solution", "chosen", "rejected") if key in row):
        yield chat.chat(tokenizer, row["prompt"], reply).text


def ids_of(tokenizer: "PreTrainedTokenizerFast", row: Record) -> list[int]:
    """The tokens of the longest example that a row becomes."""
    if "text" in row:
        return [*chat.start(tokenizer), *chat.text_ids(tokenizer, row["text"])]
    replies = [row[key] for key in ("solution", "chosen", "rejected") if key in row]
    if not replies:
        return chat.prompt_ids(tokenizer, row["prompt"])
    asked = {key: value for key, value in row.items() if key != "liked"}
    every = [ids for reply in replies for ids, *_ in packing.turns(tokenizer, asked | {"solution": reply})]
    return max(every, key=len)


def lengths_of(tokenizer: "PreTrainedTokenizerFast", prepared: Prepared, a_token: int) -> Lengths:
    """`a_token`: how many of the tokenizer's make one of the model's."""
    train, used = [], set[int]()
    for row in prepared.train:
        ids = ids_of(tokenizer, row)
        used.update(ids)
        train.append(-(-len(ids) // a_token))
    held_out = sum(len(ids_of(tokenizer, row)) for row in prepared.held_out) // a_token
    return Lengths(train, held_out, len(used))


# What is said


def examples(tokenizer: "PreTrainedTokenizerFast", rows: list[Record]) -> Iterator[str]:
    for number, row in enumerate(rows[:EXAMPLES], 1):
        for text in shown(tokenizer, row):
            more = f" ... ({len(text) - SHOWN:,} characters more)" if len(text) > SHOWN else ""
            verdict = f", {'liked' if row['liked'] else 'disliked'}" if "liked" in row else ""
            yield f"example {number} of {min(EXAMPLES, len(rows))}, {row['id']}{verdict}"
            yield from (f"  | {line}" for line in (text[:SHOWN] + more).split("\n"))


def counts(prepared: Prepared) -> str:
    dropped = f"{prepared.read:,} read, {prepared.empty:,} empty or too short, {prepared.duplicate:,} duplicates"
    return f"rows       {dropped}; {len(prepared.train):,} to train on, {len(prepared.held_out):,} held out"


def spread(lengths: list[int], context: int, about: str, cut: bool) -> str:
    ordered = sorted(lengths)
    high = ordered[math.ceil(0.95 * len(ordered)) - 1]
    longer = sum(length > context for length in lengths)
    fate = "go on in the next row" if cut else "left out"
    said = f"median {median(ordered):,.0f}, 95 % at most {high:,}, longest {ordered[-1]:,}"
    return f"tokens     {about}{said}; {longer:,} longer than the context of {context} ({fate})"


def balance(path: Path, prepared: Prepared) -> str:
    """The share of every label; rows without one are refused."""
    if lost := sum("solution" not in row for row in prepared.train + prepared.held_out):
        raise UserError(
            f"{path}: {lost} rows have no label: put them into a file of their own and name it with --unlabelled, so "
            "that the teacher labels them for its student"
        )
    train = Counter(row["solution"] for row in prepared.train)
    total = sum(train.values())
    shares = (f"{label} {count:,} ({count / total:.0%})" for label, count in train.most_common())
    return f"labels     {', '.join(shares)}"


def measured() -> tuple[float, float]:
    """(FLOP/s of a matrix product in the precision of a training, watts while it runs), of this machine now."""
    import torch

    from stages.lib.training import loop

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if loop.mixed("auto") else torch.float32
    left = torch.ones(SIDE, SIDE, dtype=dtype, device=device)
    products = 0
    (left @ left).sum().item()  # the first one starts threads and libraries
    with energy.meter() as spent:
        started = perf_counter()
        while (seconds := perf_counter() - started) < SECONDS:
            (left @ left).sum().item()  # the number waits for the device
            products += 1
    return 2.0 * SIDE**3 * products / seconds, spent["joules"] / seconds


def estimate(works: list[Work], flops_a_second: float, watts: float) -> str:
    seconds = sum(work.flops for work in works) / flops_a_second
    memory = max(work.bytes for work in works) / 1e9
    rate = f"6 x parameters x tokens over {flops_a_second / 1e9:,.0f} GFLOP/s, measured here just now at {watts:.1f} W"
    return (
        f"estimate   {duration(seconds)}, {memory:.2g} GB for weights and optimizer, {seconds * watts:,.0f} J: "
        f"no more than an estimate, of the training alone\n           {rate}"
    )


def duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"


# The profile


def joined(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key, the later one's values over the earlier one's; None stays."""
    whole: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, Mapping) and isinstance(whole.get(key), Mapping)
            whole[key] = joined(whole[key], value) if both else value
    return whole


def laid_out(value: Any, depth: int = 0) -> Any:
    """For ruamel: stages and entries each on a line of their own, what is in an entry within braces."""
    if isinstance(value, Mapping):
        made = CommentedMap((key, laid_out(inner, depth + 1)) for key, inner in value.items())
    elif isinstance(value, list):
        made = CommentedSeq(laid_out(inner, depth + 1) for inner in value)
    else:
        return value
    if depth > 1:
        made.fa.set_flow_style()
    elif isinstance(made, CommentedMap):
        for key in (key for key, inner in made.items() if inner is None):
            made.yaml_add_eol_comment("null: without the base's", key)
    return made


def write(target: Path, header: str, tree: Mapping[str, Any]) -> None:
    body = io.StringIO()
    profiles.round_trip().dump(laid_out(tree), body)
    with files.writing(target) as partial:
        partial.write_text(header + re.sub(r"(?m)^(?=[a-z_]+:)", "\n", body.getvalue()), encoding="utf-8")


def main(
    path: Path,
    *,
    as_: Annotated[
        Literal["chats", "preferences", "classify", "extract", "documents"] | None, Parameter(name="--as")
    ] = None,
    text: str | None = None,
    label: str | None = None,
    prompt: str | None = None,
    reply: str | None = None,
    fields: list[str] | None = None,
    template: str | None = None,
    names: dict[str, str] | None = None,
    unlabelled: Path | None = None,
    hub: str | None = None,
    subset: str | None = None,
    split: str = "train",
    licence: str | None = None,
    model: Path = MODEL,
    minutes: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    name: str | None = None,
    force: bool = False,
) -> None:
    """Look at your own data and write the profile that trains on them.

    Args:
        path: A file or a folder: .txt, .jsonl, .json, .csv, .tsv, .parquet, packed too; with --hub a data set's name.
        as_: What the rows are, where it can't be told.
        text: The field with the text.
        label: The field with the label.
        prompt: The field with the question.
        reply: The field with the answer.
        fields: Of texts in which something is to be found: the field with a JSON object, or several fields.
        template: Of labelled texts: what the model is asked, with {text} where the text goes.
        names: Of labelled texts: what the model shall say for a label (--names.1 good).
        unlabelled: Of labelled texts: a file or folder of further texts, which the teacher labels for its student.
        hub: Of a data set on the Hugging Face hub: its branch, tag or commit. It is fetched.
        subset: Of a data set on the hub: its configuration, where it has several.
        split: Of a data set on the hub: the rows to take.
        licence: Of the data; it goes into every model card. Default: "mine", or what the card of the data set says.
        model: A folder in Hugging Face's layout or a .gguf file, to begin with.
        minutes: How long the training may take, by the estimate: fewer steps where it would be longer.
        name: Of the profile; default: that of the path.
        force: Overwrite a profile of that name.
    """
    name = name or safe(path)
    target = place(name, force)
    for needed in filter(None, (None if hub else path, unlabelled, None if model == MODEL else model)):
        if not needed.exists():
            raise UserError(f"{needed} does not exist{fetched_by(path) if needed == path else ''}")
    if not hub and (subset or split != "train"):
        raise UserError("--subset and --split are for data sets of the hub: name the file, or give --hub")

    with TemporaryDirectory() as folder:
        origin: dict[str, Any] = {"source": str(path), "licence": licence or "mine"}
        rows = path
        if hub:
            rows, more = rows_of.on_the_hub(str(path), hub, subset, split, Path(folder))
            if not (licence or more["licence"]):
                raise UserError(f"{path}: its card names no licence: look, and give --licence")
            origin |= more | ({"licence": licence} if licence else {})
        found = rows_of.recognise(rows, Asked(as_, text, label, prompt, reply, tuple(fields or ())))
        print(f"{path}: {found.said} ({found.method})")
        if found.method != "classify" and (unlabelled or template or names):
            raise UserError(
                f"--unlabelled, --template and --names are for labelled texts; {path} is read as {found.method}"
            )
        data: dict[str, dict[str, Any]] = {"mine": {"method": found.method, **origin, **found.fields}}
        words: list[str] = []
        if found.method == "classify":
            data["mine"] |= {"names": names} if names else {}
            words = labels_of(data["mine"], rows, target)
            data["mine"]["template"] = template or question(words)
            data |= beside(data["mine"], words, unlabelled)
        prepared = {each: read(each, entry, rows, target) for each, entry in data.items()}
    external = pinned(model)
    here = Path(external["source"]).exists()
    tokenizer, shape = tokenizer_of(external, target), proposal.shape_of(model)
    tooled = any(chat.tools(row["prompt"]) for row in prepared["mine"].train if "prompt" in row)
    if tooled and not takes_tools(tokenizer):
        print("tools go into the system's words, for the chat template has no place for them")
        data["mine"]["tools"] = "system"
        prepared["mine"] = read("mine", data["mine"], rows, target)
    mine = prepared["mine"]
    shares = balance(path, mine) if words else ""
    tokenize: dict[str, Any] = {}
    if words:
        tokenize |= in_chatml(tokenizer)
        if here:
            labels.tokens(tokenizer, words)  # which have to differ
    lengths = {each: lengths_of(tokenizer, some, 1 if here else BYTES_A_TOKEN) for each, some in prepared.items()}
    tokenize["context"] = row_length(path, lengths)
    longest = max(max(some.train) for each, some in lengths.items() if each != "texts")
    if found.method == "documents":
        context = tokenize["context"]
    else:
        context = min(next((size for size in CONTEXTS if size >= longest), CONTEXTS[-1]), shape.positions)
        if min(lengths["mine"].train) > context:
            raise UserError(
                f"{path}: every row is longer than the context of {context} tokens, so nothing can be learnt"
            )

    print("\n".join(examples(tokenizer, mine.train)))
    print(counts(mine))
    about = "" if here else f"(bytes / {BYTES_A_TOKEN}: {external['source']} is not here; `make` fetches it) "
    print(spread(lengths["mine"].train, context, about, found.method == "documents"))
    if shares:
        print(shares)

    liked = [row["liked"] for row in mine.train if "liked" in row]
    if liked:
        print(f"verdicts   {sum(liked):,} liked, {len(liked) - sum(liked):,} disliked")
    tree, works = proposal.plan(found.method, shape, lengths, context, external, cuttable(tokenizer), liked)
    speed, watts = measured()
    if minutes and (share := proposal.share_of(works, minutes * 60 * speed)) < 1:
        if share < LEAST:
            least = sum(work.reading + LEAST * (work.flops - work.reading) for work in works) / speed
            raise UserError(f"--minutes {minutes:g} is too short to learn anything here: it takes {duration(least)}")
        tree, works = proposal.shorter(tree, works, share)
        print(f"minutes    {minutes:g} allow {share:.0%} of the steps that were planned")
    print(estimate(works, speed, watts))
    given = {"external": external} if model != MODEL else {}
    common = {"tokenize": {"theirs": given | tokenize | proposal.parents(found.method)}}
    common |= {"pretrain": {"teacher": given}} if given else {}
    own: dict[str, Any] = {"data": dict.fromkeys(proposal.replaced(found.method)), "hub": {}}
    for each, entry in data.items():
        own["hub" if "hub" in entry else "data"][each] = entry | {"held_out": HELD_OUT}
    overlay = joined({section: some for section, some in own.items() if some}, common, tree)
    params.check(profiles.patch(profiles.merged(BASE), overlay), target)
    header = f"# Profile {name}: {path}, {found.said}.\n# Written by flows.init; it is yours to change.\n"
    write(target, header, {"base": BASE} | overlay)
    print(f"profile    {target}; it runs by `python -m flows.lifecycle --profile {name}`")


def safe(path: Path) -> str:
    """The path's name as a profile can have it."""
    stem = path.resolve().name.split(".")[0] if path.is_file() else path.resolve().name
    return re.sub("[^a-z0-9_]+", "-", stem.lower()).strip("-") or "mine"


def place(name: str, force: bool) -> Path:
    params.check_name("--name", name)
    target = profiles.PROFILES / f"{name}.yaml"
    if name in (BASE, profiles.DEFAULT):
        raise UserError(f"{target} is what others are built on: give another --name")
    if target.exists() and not force:
        raise UserError(f"{target} is there already: give another --name, or --force to overwrite it")
    return target


def fetched_by(path: Path) -> str:
    """What helps where a path that is none may be a name on the hub."""
    named = re.fullmatch(NAME, str(path)) and not path.suffix
    return "; if it is a data set of the Hugging Face hub, `--hub main` fetches it" if named else ""


def labels_of(entry: dict[str, Any], rows: Path, target: Path) -> list[str]:
    technique = params.technique("data", "mine", entry, target)
    assert isinstance(technique, classify.Classify)
    return technique.found(rows)


def question(words: list[str]) -> str:
    """What is asked by default: which of them it is, as long as that is no list."""
    asked = f"{', '.join(words[:-1])} or {words[-1]}?" if len(words) <= 10 else "Which label?"
    return f"{labels.TEXT}\n{asked}"


def beside(entry: dict[str, Any], words: list[str], unlabelled: Path | None) -> dict[str, dict[str, Any]]:
    """What goes with labelled texts: texts alone, to count tokens in, and those that the teacher is to label."""
    if unlabelled:
        entry = {key: value for key, value in entry.items() if key != "hub"} | {"source": str(unlabelled)}
    texts = {"method": "documents"} | {key: entry[key] for key in ("source", "hub", "licence") if key in entry}
    found = {"texts": texts | {"text_field": entry["text_field"], "min_characters": 1}}
    return found | ({"unlabelled": entry | {"labels": words}} if unlabelled else {})


def read(each: str, entry: dict[str, Any], fetched: Path, target: Path) -> Prepared:
    technique = params.technique("data", each, entry | {"held_out": HELD_OUT}, target)
    assert isinstance(technique, Dataset)
    return rows_of.prepare(technique, fetched if "hub" in entry else technique.source)


def takes_tools(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether the chat template has a place for what a model may call."""
    listed = '[{"type": "function", "function": {"name": "a"}}]'
    asked = [{"role": chat.DEFINED, "content": listed}, *chat.messages("?")]
    return not chat.drops(tokenizer, asked, [], chat.DEFINED)


def in_chatml(tokenizer: "PreTrainedTokenizerFast") -> dict[str, str]:
    """For a task of one question: no template of its own that says beforehand whose model it is, where tokens allow."""
    if templates.lacking(tokenizer, "chatml"):
        return {}
    tokenizer.chat_template = templates.write(tokenizer, "chatml")
    print("in Orchard's chatml, which puts nothing in front of the question")
    return {"chat_template": "chatml"}


def cuttable(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether prune/vocabulary can take tokens away."""
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["type"] in ("BPE", "Unigram")


def row_length(path: Path, lengths: Mapping[str, Lengths]) -> int:
    """Tokens of a packed row: the held-out part of every kind has to fill one."""
    least = min(lengths[each].held_out for each in ("mine", "texts") if each in lengths)
    if least < ROWS[-1]:
        raise UserError(f"{path}: the held-out rows are {least} tokens in all, and it takes {ROWS[-1]}: give more rows")
    return next(size for size in ROWS if size <= least)


if __name__ == "__main__":
    command(main)
