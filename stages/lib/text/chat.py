"""Text and chats as token ids: the one place that knows chat templates and control tokens.

A control token is one only where the template writes it. The same characters in a document, a question or an answer
are text, as whoever wrote them saw them. A template that asks for the date gets the same one every day.
"""

import json
import re
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.lib.frame.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

DAY = datetime(2024, 7, 26)  # on which every chat takes place; what Llama 3's template says where it has no clock
HIDDEN = "\ufdd0{}\ufdd1"  # a control token's number in place of a quoted one: characters that no text may have
MARKED = "\ufdd2{}\ufdd3"  # a control token that the template wrote, beside quoted ones
PROBE = "orchard"  # an answer that no template changes

TOOLS = ("tool", "function")  # roles in which a tool answers; few templates have them
DEFINED = "tools"  # whose content lists, as JSON, what the model may call; a template has a place of its own for it
ANOTHER = json.dumps([{"type": "function", "function": {"name": PROBE, "description": PROBE, "parameters": {}}}])
INSTEAD = {**dict.fromkeys(TOOLS, PROBE), DEFINED: ANOTHER}  # what each might have said

Message = dict[str, str]  # role and content, of a tool perhaps its name
Prompt = str | list[Message]  # a question, or all that was said before an answer, from the system's words on


class Coded(NamedTuple):
    """A prompt with its reply."""

    ids: list[int]  # of both and of the end of the turn; begins with prompt_ids(prompt)
    begin: int  # the first token of the reply
    text: str
    spans: list[tuple[int, int]]  # the characters of the text that each token stands for


def messages(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def learnt(message: Message) -> bool:
    """Whether it is a reply that is to be learnt, and not only read."""
    return message["role"] == "assistant" and "learn" not in message


def plain(prompt: Prompt) -> str:
    """What was said, without who said it."""
    return "\n".join(message["content"] for message in messages(prompt))


def prompt_ids(tokenizer: "PreTrainedTokenizerFast", prompt: Prompt) -> list[int]:
    """Token ids up to and including the mark where the assistant begins to write."""
    return encode(tokenizer, render(tokenizer, hidden(tokenizer, prompt))).ids


def chat_ids(tokenizer: "PreTrainedTokenizerFast", prompt: Prompt, reply: str) -> list[int]:
    """Token ids of prompt and reply with the end of the turn; begins with prompt_ids(prompt)."""
    return chat(tokenizer, prompt, reply).ids


def chat(tokenizer: "PreTrainedTokenizerFast", prompt: Prompt, reply: str) -> Coded:
    """As the template writes it, if that is how the model is asked; else the reply as it stands behind the prompt.

    Some templates open the reasoning in the prompt, but not in front of a given answer; some cut the reasoning out of
    answers, or write no end. Learnt is what the model shall write when it is asked.
    """
    before, answer = hidden(tokenizer, prompt), hide(tokenizer, reply)
    asked, text, end = render(tokenizer, before), render(tokenizer, before, answer), ending(tokenizer)
    if not (text.startswith(asked) and f"{answer.strip()}{end}" in text[len(asked) :]):
        text = asked + answer + end
    whole, first = encode(tokenizer, text), encode(tokenizer, asked)
    begin, length = len(first.ids), len(first.text)
    if whole.ids[:begin] == first.ids:
        return whole._replace(begin=begin)
    after = encode(tokenizer, text[len(asked) :])  # a token would reach over the place where the model begins
    spans = first.spans + [(length + start, length + stop) for start, stop in after.spans]
    return Coded(first.ids + after.ids, begin, whole.text, spans)


def text_ids(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """Of a document, without a start token."""
    return encode(tokenizer, hide(tokenizer, text)).ids


def texts_ids(tokenizer: "PreTrainedTokenizerFast", texts: list[str]) -> list[list[int]]:
    """As text_ids of each; several at a time where TOKENIZERS_PARALLELISM allows it."""
    hidden = [hide(tokenizer, text) for text in texts]
    coded: Any = tokenizer(hidden, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    pairs = zip(hidden, coded["input_ids"], strict=True)
    return [encode(tokenizer, text).ids if "\ufdd0" in text else ids for text, ids in pairs]


def start(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """What a document starts with: BOS, or the end of the one before where a model has no BOS, or nothing."""
    ids: list[Any] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return [token for token in ids if token is not None][:1]


def filler(tokenizer: "PreTrainedTokenizerFast") -> int:
    """A token for places that nobody looks at."""
    ids: list[Any] = [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]
    return next(token for token in ids if token is not None)


def stops(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """The tokens that end an answer: what the template writes behind one, and the end of a text."""
    last = encode(tokenizer, ending(tokenizer)).ids[-1] if tokenizer.chat_template else None
    ids: list[Any] = [last, tokenizer.eos_token_id]
    return list(dict.fromkeys(token for token in ids if token is not None))


def ending(tokenizer: "PreTrainedTokenizerFast") -> str:
    """What stands behind an answer up to the first control token; EOS where the template writes none."""
    return template_ending(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def template_ending(tokenizer: "PreTrainedTokenizerFast", template: str) -> str:
    _, found, after = render(tokenizer, messages("?"), PROBE).rpartition(PROBE)
    if not found:
        raise UserError(f"the chat template changes or drops the answer, so none can be learnt: {template[:200]!r}")
    end: Any = tokenizer.eos_token
    if (control := pattern(tokenizer).search(after)) or end is None:
        if control is None:
            raise UserError(f"nothing ends an answer: no EOS, no control token in the chat template {template[:200]!r}")
        return after[: control.end()]
    return end


def render(tokenizer: "PreTrainedTokenizerFast", before: list[Message], reply: str | None = None) -> str:
    """The template's text of what was said, with the answer or up to where the model begins to write one."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template: give one as `chat_template` where it is made (tokenize)")
    answer = [] if reply is None else [{"role": "assistant", "content": reply}]
    try:
        written = fill(tokenizer, before, answer)
        if role := next((role for role in INSTEAD if drops(tokenizer, before, answer, role)), None):
            more = "; `tools: system` writes them into the system's words" if role == DEFINED else ""
            raise UserError(
                f"the chat template drops what role '{role}' says, so it can't be asked with it: take a model "
                f"whose template has it, or write it into `system`, as the model shall read it{more}"
            )
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(f"the chat template cannot write {roles(before)} with its answer: {error}") from error
    return written


def fill(tokenizer: "PreTrainedTokenizerFast", said: list[Message], answer: list[Message]) -> str:
    return str(
        tokenizer.apply_chat_template(
            [*(message for message in said if message["role"] != DEFINED), *answer],
            tools=json.loads(defined) if (defined := tools(said)) else None,
            tokenize=False,
            add_generation_prompt=not answer,
            strftime_now=DAY.strftime,
        )
    )


def drops(tokenizer: "PreTrainedTokenizerFast", said: list[Message], answer: list[Message], role: str) -> bool:
    """Whether it makes no difference to the text what this role says."""
    other = [message | {"content": INSTEAD[role]} if message["role"] == role else message for message in said]
    return other != said and fill(tokenizer, said, answer) == fill(tokenizer, other, answer)


def tools(prompt: Prompt) -> str | None:
    """The JSON list of what may be called, where a prompt has one."""
    if isinstance(prompt, str):
        return None
    return next((message["content"] for message in prompt if message["role"] == DEFINED), None)


def roles(before: list[Message]) -> str:
    return "a question" if len(before) == 1 else ", ".join(message["role"] for message in before)


def encode(tokenizer: "PreTrainedTokenizerFast", text: str) -> Coded:
    """Of a text in which quoted control tokens are hidden."""
    if "\ufdd0" not in text:
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Coded(coded["input_ids"], 0, text, coded["offset_mapping"])
    marked = pattern(tokenizer).sub(lambda found: MARKED.format(found[0]), text)
    spelt = show(tokenizer, marked)
    coded = marking(tokenizer).encode(spelt, add_special_tokens=False)
    marks = [0]
    for character in spelt:
        marks.append(marks[-1] + (character in "\ufdd2\ufdd3"))
    return Coded(
        coded.ids, 0, show(tokenizer, text), [(begin - marks[begin], end - marks[end]) for begin, end in coded.offsets]
    )


def hidden(tokenizer: "PreTrainedTokenizerFast", prompt: Prompt) -> list[Message]:
    return [message | {"content": hide(tokenizer, message["content"])} for message in messages(prompt)]


def hide(tokenizer: "PreTrainedTokenizerFast", text: str) -> str:
    """The text with a number in place of every control token, which no template and no tokenizer knows."""
    names = control(tokenizer)
    return pattern(tokenizer).sub(lambda found: HIDDEN.format(names.index(found[0])), text)


def show(tokenizer: "PreTrainedTokenizerFast", text: str) -> str:
    """The text with its quoted control tokens."""
    names = control(tokenizer)
    return re.sub(HIDDEN.format("([0-9]+)"), lambda found: names[int(found[1])], text)


@lru_cache(maxsize=16)
def control(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """The control tokens, long ones first: one may begin with another."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted(names, key=lambda name: (-len(name), name))


@lru_cache(maxsize=16)
def pattern(tokenizer: "PreTrainedTokenizerFast") -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, control(tokenizer))) or "(?!)")


@lru_cache(maxsize=16)
def marking(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer":
    """The same tokenizer, but that it takes control tokens for such only where they are marked."""
    from tokenizers import Tokenizer

    marked = {name: MARKED.format(name) for name in control(tokenizer)}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    for added in state["added_tokens"]:
        added["content"] = marked.get(added["content"], added["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {marked.get(token, token): index for token, index in model["vocab"].items()}
    else:
        model["vocab"] = [[marked.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = marked.get(model["unk_token"], model["unk_token"])
    return Tokenizer.from_str(json.dumps(state))
