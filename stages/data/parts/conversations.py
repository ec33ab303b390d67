"""The shapes in which conversations and preferences lie in files: what users of other tools have, taken as it is.

messages        {"messages": [{"role", "content"}, ...]}: OpenAI, TRL; with roles of ShareGPT too
conversations   {"conversations": [{"from", "value"}, ...]}: ShareGPT, FastChat
prompt and completion, question and answer, instruction (with input) and output (Alpaca), or two named fields: texts, or
                lists of messages
chosen, rejected: texts, a message each, or lists of messages, to a prompt (TRL), question, instruction (with input), or
                to messages or conversations (LLaMA-Factory); without any of these both begin with it (UltraFeedback),
                as chosen_messages and rejected_messages do
completion, label: a text or messages to a prompt (TRL), and true or false; or messages that end in it, and label (KTO)

Beside any of these `system` holds what the model is told beforehand, and `tools`, a list or its JSON, what it may call.
A reply whose turn has weight 0 is read, but not learnt. Roles of tools stay as they are: whether a model's template has
them, and a place for `tools`, is seen when the model reads them. Learnt is what the model shall write, so reasoning and
calls that stand beside a reply's words (reasoning_content, tool_calls) or in parts of it are written into them as the
templates of Hermes, Qwen and SmolLM3 write them; turns that are calls (ShareGPT's function_call) stay as they are.
"""

import ast
import json
from contextlib import suppress
from typing import Any

from stages.data.parts.clean import whole
from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record
from stages.lib.text.chat import DEFINED, TOOLS, Message, Prompt, learnt

LISTS = ("messages", "conversations", "conversation")
SINGLE = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "output"))
UNPAIRED = ("prompt", "completion", "label")
PAIRED = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"))  # TRL's names, LLaMA-Factory's
ASKED = ("prompt", "question", "instruction", *LISTS)  # what a preference is about
LABELS = {"true": True, "1": True, "false": False, "0": False}  # as files write them
EXTRA = ("system", "input", "tools")  # beside them
CALL, REASONING = "<tool_call>\n{}\n</tool_call>", "<think>\n{}\n</think>\n\n"
REASONED = ("reasoning_content", "reasoning", "thinking")  # DeepSeek's and Qwen's name, vLLM's, gpt-oss's
WEIGHTS = ("weight", "loss_weight", "train")  # of a turn: OpenAI's, LLaMA-Factory's and axolotl's
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bard", "bing", "model", "bot", "function_call"),
    "tool": ("tool", "observation"),
    "function": ("function",),
}
KNOWN = {name: role for role, names in ROLES.items() for name in names}


def fields(*own: str) -> list[str]:
    """Every column that may matter."""
    single = dict.fromkeys(name for pair in SINGLE for name in pair)
    return [*own, "id", *LISTS, *single, *EXTRA, *(name for pair in PAIRED for name in pair), "label"]


def shape(row: Record, place: str) -> tuple[str, ...]:
    """The fields of a row that hold its conversation."""
    for name in LISTS:
        if name in row:
            return (name,)
    for pair in SINGLE:
        if row.keys() >= set(pair):
            return pair
    known = ", ".join([*LISTS, *(" and ".join(pair) for pair in SINGLE)])
    raise UserError(
        f"{place}: no conversation in its fields {', '.join(row)}; known are {known}: name others as "
        "`prompt_field` and `reply_field`"
    )


def conversation(row: Record, names: tuple[str, ...], place: str) -> list[Message]:
    """All that was said, in order; what stands behind the last reply to learn is left out. Empty: there is none."""
    if missing := [name for name in names if name not in row]:
        raise UserError(f"{place}: no field {missing[0]!r}; its fields are: {', '.join(row)}")
    if len(names) == 1:
        said = turns(row[names[0]], f"{place}, {names[0]}")
    else:
        said = [*question(row, names[0], place), *one(row[names[1]], "assistant", f"{place}, {names[1]}")]
    said = told(row, said, place)
    while said and not learnt(said[-1]):
        said.pop()
    return said


def question(row: Record, name: str, place: str) -> list[Message]:
    """What a row asks in this field; of Alpaca's instructions with their input."""
    asked = row[name]
    if row.get("input") and name == "instruction":
        asked = f"{asked}\n\n{row['input']}"
    return one(asked, "user", f"{place}, {name}")


def told(row: Record, said: list[Message], place: str) -> list[Message]:
    """A conversation with what the model is told beforehand: what it may call, and its system's words."""
    if row.get("system") and said and said[0]["role"] != "system":
        said = [*one(row["system"], "system", f"{place}, system"), *said]
    if said and (defined := tools(row.get("tools"), f"{place}, tools")):
        return [{"role": DEFINED, "content": json.dumps(defined, ensure_ascii=False)}, *said]
    return said


def tools(given: Any, place: str) -> list[dict[str, Any]]:
    """What may be called, each as OpenAI and transformers describe it; also what says a name and no more."""
    if given in (None, ""):
        return []
    try:
        listed = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        listed = None
    described = [each.get("function", each) if isinstance(each, dict) else None for each in listed or ()]
    if not isinstance(listed, list) or not all(isinstance(each, dict) and each.get("name") for each in described):
        raise UserError(
            f'{place}: {given!r:.60} is no JSON list of tools, [{{"name", "description", "parameters"}}, ...]'
        )
    return [{"type": "function", "function": each} for each in described if each]


def one(said: Any, role: str, place: str) -> list[Message]:
    """A text of this role, a message, or several."""
    if isinstance(said, dict):
        return turns([said], place)
    if (found := listing(said)) is not None:
        return turns(found, place)
    if said is None or isinstance(said, str):
        return [{"role": role, "content": whole(said or "")}]
    raise UserError(f"{place}: {said!r:.40} is neither a text nor a list of messages")


def turns(said: Any, place: str) -> list[Message]:
    found = listing(said)
    if found is None or not all(isinstance(turn, dict) for turn in found):
        raise UserError(f'{place}: {said!r:.40} is no list of messages, [{{"role": ..., "content": ...}}, ...]')
    return [message(turn, f"{place}, turn {number}") for number, turn in enumerate(found, 1)]


def listing(said: Any) -> list[Any] | None:
    """Messages as a list, or as a table has one: in JSON, or as Python prints it, which is what pandas writes."""
    if isinstance(said, list):
        return said
    if isinstance(said, str) and said.lstrip().startswith("[{"):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = read(said)
                if all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in found):
                    return found
    return None


def listed(row: Record) -> str | None:
    """The field of a row that holds a list of messages."""
    return next((name for name in LISTS if listing(row.get(name)) is not None), None)


def message(turn: dict[str, Any], place: str) -> Message:
    role = turn.get("role", turn.get("from"))
    if str(role).lower() not in KNOWN:
        raise UserError(f"{place}: role {role!r} is none of {', '.join(KNOWN)}")
    known = {"role": KNOWN[str(role).lower()]}
    known["content"] = whole(words(turn, known["role"], place))
    if known["role"] == "assistant" and not weighs(turn, place):
        known["learn"] = "no"
    named = known["role"] in TOOLS and isinstance(turn.get("name"), str)  # some templates write which tool it was
    return known | {"name": whole(turn["name"])} if named else known


def words(turn: dict[str, Any], role: str, place: str) -> str:
    """All that a turn says; of a reply also how it was thought out, and what it calls."""
    content = turn.get("content", turn.get("value"))
    parts = list(content) if isinstance(content, list) else [{"type": "text", "text": content}]
    if role == "assistant":
        given = [turn[name] for name in REASONED if turn.get(name) and "<think>" not in str(content)]
        thought = [{"type": "reasoning", "text": each} for each in given[:1]]
        called = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
        if not isinstance(called, list):
            raise UserError(f"{place}: tool_calls is {called!r:.40}, which is no list")
        if content is None and (thought or called):
            parts = []
        parts = [*thought, *parts, *({"type": "tool_call", "value": call} for call in called)]
    said = ""
    for part in parts:
        kind, text = part_of(part, role, place)
        apart = kind == "tool_call" and said and not said.endswith("\n")
        said += f"\n{text}" if apart else text
    return said


def part_of(part: Any, role: str, place: str) -> tuple[str, str]:
    """(kind, text) of a part of a message, as OpenAI ({"type": "text", "text"}) or LLaMA-Factory ("value") write it."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", *(("reasoning", "thinking", "tool_call") if role == "assistant" else ())):
        raise UserError(f"{place}: {part!r:.60} is no text, and only texts are learnt here")
    said = part.get("text", part.get("value", part.get("thinking")))
    if kind == "tool_call":
        return kind, CALL.format(call(said, place))
    if not isinstance(said, str):
        raise UserError(f"{place}: its content is {said!r:.40}, which is no text")
    return kind, said if kind == "text" else REASONING.format(said.strip())


def call(given: Any, place: str) -> str:
    """What a tool is called with, its arguments in JSON (OpenAI) or an object (transformers), as one JSON object."""
    try:
        named = json.loads(given) if isinstance(given, str) else given
        named = named.get("function", named)
        arguments = named.get("arguments") or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        return json.dumps({"name": named["name"], "arguments": arguments}, ensure_ascii=False)
    except (ValueError, AttributeError, KeyError):
        one = '{"function": {"name": ..., "arguments": {...}}}'
        raise UserError(f"{place}: {given!r:.60} is no call of a tool, {one}") from None


def weighs(turn: dict[str, Any], place: str) -> bool:
    """Whether a reply is to be learnt, or only to be read."""
    for name in WEIGHTS:
        if turn.get(name) not in (None, 0, 1):
            raise UserError(f"{place}: {name} is {turn[name]!r:.40}; a reply is learnt (1) or not (0)")
    return all(turn.get(name) != 0 for name in WEIGHTS)


def prompt(before: list[Message]) -> Prompt:
    """A single question as a text; more than that as messages."""
    return before[0]["content"] if [each["role"] for each in before] == ["user"] else before


CALLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def in_system(asked: Prompt) -> Prompt:
    """What may be called, in words of the system behind its own: as the templates of Hermes and Qwen write it."""
    if isinstance(asked, str) or asked[0]["role"] != DEFINED:
        return asked
    listed, *said = asked
    words = [json.dumps(tool, ensure_ascii=False) for tool in json.loads(listed["content"])]
    told = CALLS.format(tools="\n".join(words))
    if said and said[0]["role"] == "system":
        own, *said = said
        told = f"{own['content']}\n\n{told}"
    return [{"role": "system", "content": told}, *said]


def preference(row: Record, place: str) -> tuple[Prompt, str, str]:
    """(prompt, chosen reply, rejected reply)."""
    sides = sides_of(row)
    if missing := [name for name in sides if name not in row]:
        raise UserError(f"{place}: no field {missing[0]!r}; a preference has prompt, chosen and rejected")
    name = next((name for name in ASKED if row.get(name) is not None), None)
    asked = question(row, name, place) if name else []
    chosen, rejected = (one(row[name], "assistant", f"{place}, {name}") for name in sides)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    begin = chosen[:shared]
    before = told(row, begin if begin[: len(asked)] == asked else [*asked, *begin], place)
    ends = (chosen[shared:], rejected[shared:])
    if not before or any([turn["role"] for turn in end] != ["assistant"] for end in ends):
        raise UserError(f"{place}: {' and '.join(sides)} are not two replies to one prompt")
    return prompt(before), ends[0][0]["content"], ends[1][0]["content"]


def paired(row: Record) -> tuple[str, str] | None:
    """The fields of a row's two replies, if it has two."""
    return next((pair for pair in PAIRED if row.keys() >= set(pair)), None)


def sides_of(row: Record) -> tuple[str, str]:
    """Those, or the usual ones that it lacks."""
    return paired(row) or PAIRED[0]


def unpaired(row: Record) -> bool:
    """Whether a row is one reply and a verdict on it."""
    whole = "label" in row and listed(row) is not None
    return (whole or row.keys() >= set(UNPAIRED)) and not paired(row)


def verdict(row: Record, place: str) -> tuple[Prompt, str, bool]:
    """(prompt, reply, whether it was liked)."""
    if "label" in row and (name := listed(row)):
        *asked, last = told(row, turns(row[name], f"{place}, {name}"), place) or [{"role": "", "content": ""}]
        said = [last]
    elif missing := [name for name in UNPAIRED if name not in row]:
        raise UserError(f"{place}: no field {missing[0]!r}; a reply that was liked or not has {', '.join(UNPAIRED)}")
    else:
        asked, said = told(row, question(row, "prompt", place), place), one(row["completion"], "assistant", place)
    if not asked or [turn["role"] for turn in said] != ["assistant"]:
        raise UserError(f"{place}: completion is not one reply to a prompt")
    if (label := str(row["label"]).lower()) not in LABELS:
        raise UserError(f"{place}: label {row['label']!r:.40} is none of true, false")
    return prompt(asked), said[0]["content"], LABELS[label]
