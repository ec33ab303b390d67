"""What a user's own file or folder holds, told by its first rows, and what the data stage makes of all of them.

No technique, but for who begins with data and not with a profile (flows/init.py): which technique reads the rows, by
which of its fields. Where the fields allow two answers, or none, nobody guesses: the fields are said, and the options.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from stages.data import Dataset, Hub
from stages.data.__main__ import save
from stages.data.parts import conversations, hub, reading
from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.store import records
from stages.lib.store.records import SPLITS, Record
from stages.lib.text import problems

FIRST = 1000  # rows that are looked at
FEW = 20  # different values that a column of labels may have
SHORT = 200  # characters: where most texts have fewer, the shortest are kept too
ABOUT = ("id", "split")  # columns that say something of a row, and are not learnt
METHODS = ("chats", "preferences", "classify", "extract", "documents")


class Asked(NamedTuple):
    """What the user says of the rows."""

    method: str | None = None
    text: str | None = None
    label: str | None = None
    prompt: str | None = None
    reply: str | None = None
    fields: tuple[str, ...] = ()


class Found(NamedTuple):
    method: str  # of METHODS
    fields: dict[str, Any]  # parameters of the technique
    said: str  # the same in words


class Prepared(NamedTuple):
    """The rows as the data stage splits them, and how many it read and dropped."""

    read: int
    empty: int
    duplicate: int
    train: list[Record]
    held_out: list[Record]


def recognise(source: Path, asked: Asked) -> Found:
    """The technique for these rows; UserError, in one line, where that can't be said."""
    rows = list(islice(every_row(source), FIRST))
    if not any(str(value).strip() for row in rows for value in row.values() if value is not None):
        raise UserError(f"{source}: it is empty: no row that holds anything")
    names = list(dict.fromkeys(name for row in rows for name in row))
    named = [name for name in (asked.text, asked.label, asked.prompt, asked.reply, *asked.fields) if name]
    if wrong := [name for name in named if name not in names]:
        raise UserError(f"{source}: no field '{wrong[0]}'; its fields are: {params.names(names)}")
    objects = list(asked.fields) or object_fields(rows, names)
    labels = [asked.label] if asked.label else label_fields(rows, names, asked.text)
    texts = [asked.text] if asked.text else text_fields(rows, names, [*labels, *objects])
    method = method_of(source, rows, names, asked, texts, labels, objects)
    if method == "classify" and len(texts) == len(labels) == 1:
        fields = {"text_field": texts[0], "label_field": labels[0]}
        return Found(method, fields, f"labelled texts, the text in '{texts[0]}', the label in '{labels[0]}'")
    if method == "extract" and len(texts) == 1 and objects:
        fields = {"text_field": texts[0], "fields": objects[0] if len(objects) == 1 else objects}
        return Found(method, fields, f"texts in '{texts[0]}', to find in them what is in {params.names(objects)}")
    if method == "documents" and len(texts) == 1:
        short = sorted(len(str(row.get(texts[0]) or "")) for row in rows)[len(rows) // 2] < SHORT
        fields = {"text_field": texts[0]} | ({"min_characters": 1} if short else {})
        return Found(method, fields, f"plain texts, in '{texts[0]}'")
    if method == "chats" and (asked.prompt or talks(rows[0])):
        fields = {"prompt_field": asked.prompt, "reply_field": asked.reply} if asked.prompt else {}
        return Found(method, fields, f"conversations, in {' and '.join(fields.values()) or shape(rows[0], source)}")
    if method == "preferences":
        in_two = "in '{}' and '{}'".format(*conversations.sides_of(rows[0]))
        said = "replies that were liked or not, by 'label'" if judged(rows[0]) else in_two
        return Found(method, {}, f"preferences, {said}")
    raise unknown(source, rows, names, f"not clear which fields {method} should read")


def method_of(
    source: Path,
    rows: list[Record],
    names: list[str],
    asked: Asked,
    texts: list[str],
    labels: list[str],
    objects: list[str],
) -> str:
    """What is asked for, or else the only one of METHODS that the fields allow."""
    if bool(asked.prompt) != bool(asked.reply):
        raise UserError("--prompt and --reply belong together: name both fields, or none")
    implied = {"classify"} if asked.label else set()
    implied |= {"chats"} if asked.prompt else set()
    implied |= {"extract"} if asked.fields else set()
    implied |= {asked.method} if asked.method else set()
    if len(implied) > 1:
        raise UserError(f"--as, --label, --prompt and --fields ask for {params.names(sorted(implied))}: choose one")
    if implied:
        return implied.pop()
    if conversations.paired(rows[0]) or judged(rows[0]):
        return "preferences"
    found = ["chats"] if talks(rows[0]) else []
    if len(texts) == len(objects) == 1 and not found:
        found = ["extract"]
    elif len(texts) == 1 and len(labels) < 2:
        found += ["classify"] if labels else [] if found else ["documents"]
    if len(found) != 1:
        raise unknown(source, rows, names, f"it may be {' or '.join(found)}" if found else "no format that is known")
    return found[0]


def unknown(source: Path, rows: list[Record], names: list[str], what: str) -> UserError:
    values = {name: next((row[name] for row in rows if row.get(name) is not None), None) for name in names}
    shown = params.names(f"{name} ({' '.join(str(value).split())[:24]!r})" for name, value in values.items())
    return UserError(
        f"{source}: {what}; its fields are {shown}; say what they hold: `--as classify --text FIELD "
        "--label FIELD`, `--prompt FIELD --reply FIELD`, `--text FIELD --fields FIELD`, `--as documents --text FIELD`, "
        "`--as preferences`"
    )


def on_the_hub(name: str, revision: str, subset: str | None, split: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """(the rows of a data set in a file in the folder, how params name it: by its commit, and under its licence)."""
    commit, licence = hub.look_up(name, revision)
    pinned = {"revision": commit, "split": split} | ({"subset": subset} if subset else {})
    return hub.download(name, Hub(**pinned), folder), {"hub": pinned, "licence": licence}


def every_row(source: Path) -> Iterator[Record]:
    """Rows of every file with all their columns."""
    for file in reading.files(source)[0]:
        columns = list(next(reading.rows(file, ()), {})) if reading.kind(file) == ".parquet" else []
        yield from reading.rows(file, columns)


def talks(row: Record) -> bool:
    """Whether a row holds a conversation in a shape that is known."""
    return bool(conversations.listed(row)) or any(row.keys() >= set(pair) for pair in conversations.SINGLE)


def judged(row: Record) -> bool:
    """Whether a row is one reply that somebody liked or disliked."""
    return conversations.unpaired(row) and str(row["label"]).lower() in conversations.LABELS


def shape(row: Record, source: Path) -> str:
    return " and ".join(conversations.shape(row, str(source)))


def object_fields(rows: list[Record], names: list[str]) -> list[str]:
    """The columns of JSON objects."""
    found = []
    for name in names:
        values = [value for row in rows if (value := row.get(name)) not in (None, "")]
        if values and all(isinstance(value, dict) or problems.fields(str(value)) for value in values):
            found.append(name)
    return found


def text_fields(rows: list[Record], names: list[str], labels: list[str]) -> list[str]:
    """`text`, or else the columns of which most values are more than a word."""
    if "text" in names:
        return ["text"]
    found = []
    for name in names:
        said = [value for row in rows if isinstance(value := row.get(name), str) and value.strip()]
        if name not in (*ABOUT, *labels) and 2 * sum(len(value.split()) > 1 for value in said) > len(said):
            found.append(name)
    return found


def label_fields(rows: list[Record], names: list[str], text: str | None) -> list[str]:
    """`label`, or else the columns of a few values, each of which comes twice on average."""
    if "label" in names:
        return ["label"]
    found = []
    for name in names:
        values = [value for row in rows if (value := row.get(name)) is not None and str(value).strip()]
        plain = all(isinstance(value, str | int | float) for value in values)
        if (
            name not in (*ABOUT, "text", text)
            and plain
            and 2 <= len(set(map(str, values))) <= min(FEW, len(values) / 2)
        ):
            found.append(name)
    return found


def prepare(technique: Dataset, source: Path) -> Prepared:
    """What the stage will leave of the source; UserError where it would refuse it."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        counts, kinds = save(technique, source, place, place / "shards", workers=1)
        train, held_out = (records.load(place, split) for split in SPLITS)
    read, empty, duplicate = (counts[f"records_{what}"] for what in ("read", "too_short", "duplicate"))
    left = len(train) + len(held_out)
    if left < technique.min_records:
        said = f"{read} rows read, {empty} empty or too short, {duplicate} duplicates"
        raise UserError(f"{source}: {said}: {left} are left, and it takes {technique.min_records}")
    if not train or not held_out:
        raise UserError(f"{source}: {len(train)} rows to train on and {len(held_out)} held out; both need one or more")
    technique.require(kinds, str(source))
    return Prepared(read, empty, duplicate, train, held_out)
