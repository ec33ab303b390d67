"""Conversations and preferences in the shapes that other tools write, against the records by hand and against TRL."""

import copy
import json
from pathlib import Path

import pytest

from stages.data import chats, preferences
from stages.data.parts import clean
from stages.lib.frame.errors import UserError
from stages.lib.text import chat, packing

ASK, SAY = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
SHORT = {"role": "system", "content": "Be short."}
SHAPES = {
    "messages": {"messages": [ASK, SAY]},
    "parts": {"messages": [ASK | {"content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]}, SAY]},
    "parts of llama-factory": {"messages": [ASK | {"content": [{"type": "text", "value": "2 + 2?"}]}, SAY]},
    "sharegpt": {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    "completion": {"prompt": "2 + 2?", "completion": "4"},
    "messages of trl": {"prompt": [ASK], "completion": [SAY]},
    "response": {"prompt": "2 + 2?", "response": "4"},
    "question": {"question": "2 + 2?", "answer": "4"},
    "alpaca": {"instruction": "2 + 2?", "input": "", "output": "4"},
    "a question behind it": {"messages": [ASK, SAY, {"role": "user", "content": "And 3 + 3?"}]},
}


def read(folder: Path, *rows, technique=chats.Chats, **more):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = technique.__name__.lower()
    return list(technique(method=method, source=folder, licence="mine", **more).records(folder))


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_the_same_conversation(name, tmp_path):
    [found] = read(tmp_path, SHAPES[name])
    assert found == {"id": "a/0", "family": "chat", "prompt": "2 + 2?", "solution": "4", "scorer": "number"}


def test_the_words_of_the_system_and_earlier_turns_stand_before_the_reply(tmp_path):
    more = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    [found] = read(tmp_path, {"messages": [SHORT, ASK, SAY, *more]})
    assert found["prompt"] == [SHORT, ASK, SAY, more[0]] and found["solution"] == "Yes."
    [alpaca] = read(tmp_path, {"instruction": "Add.", "input": "2 and 2", "output": "4", "system": "Be short."})
    assert alpaca["prompt"] == [SHORT, {"role": "user", "content": "Add.\n\n2 and 2"}]


@pytest.mark.parametrize("name", ["weight", "loss_weight", "train"])
def test_a_reply_of_no_weight_is_read_and_not_learnt(name, tmp_path, tokenizer):
    more = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    unlearnt = SAY | {name: 0}
    [found] = read(tmp_path, {"messages": [ASK, unlearnt, more[0], more[1] | {name: 1}]})
    assert found["prompt"] == [ASK, SAY | {"learn": "no"}, more[0]] and found["solution"] == "Yes."
    learnt = [
        tokenizer.decode([token for token in labels if token != packing.IGNORE])
        for _, labels, _ in packing.turns(tokenizer, found)
    ]
    assert "Yes." in "".join(learnt) and "4" not in "".join(learnt)
    [both] = read(tmp_path, {"messages": [ASK, SAY, *more]})
    ids = [ids for ids, _, _ in packing.turns(tokenizer, found)]
    assert ids[-1] == packing.turns(tokenizer, both)[-1][0]  # but it is read all the same
    [first] = read(tmp_path, {"messages": [ASK, SAY, more[0], more[1] | {name: False}]})
    assert (first["prompt"], first["solution"]) == ("2 + 2?", "4")
    [none] = read(tmp_path, {"messages": [ASK, unlearnt]})
    assert none["solution"] == ""
    with pytest.raises(UserError, match=rf"turn 2: {name} is 0.5; a reply is learnt \(1\) or not \(0\)"):
        read(tmp_path, {"messages": [ASK, SAY | {name: 0.5}]})


def test_fields_of_ones_own_are_named(tmp_path):
    row = {"Frage": "2 + 2?", "Antwort": "4"}
    [found] = read(tmp_path, row, prompt_field="Frage", reply_field="Antwort")
    assert (found["prompt"], found["solution"]) == ("2 + 2?", "4")
    with pytest.raises(UserError, match="record 1: no conversation in its fields Frage, Antwort; known are messages, "):
        read(tmp_path, row)
    with pytest.raises(ValueError, match="belong together"):
        read(tmp_path, row, prompt_field="Frage")


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "json", "jsonl.gz"])
def test_tables_and_packed_files_too(kind, tmp_path):
    import gzip

    import pandas

    table = pandas.DataFrame({"question": ["2 + 2?", "3 + 3?"], "answer": ["4", "6"], "more": [1, 2]})
    file, lines = tmp_path / f"a.{kind}", table.to_json(orient="records", lines=True)
    if kind == "jsonl.gz":
        file.write_bytes(gzip.compress(lines.encode()))
    elif kind == "parquet":
        table.to_parquet(file)
    elif kind == "json":
        table.to_json(file, orient="records")
    else:
        table.to_csv(file, sep="\t" if kind == "tsv" else ",", index=False)
    found = list(chats.Chats(method="chats", source=tmp_path, licence="mine").records(tmp_path))
    assert [(row["prompt"], row["solution"]) for row in found] == [("2 + 2?", "4"), ("3 + 3?", "6")]


@pytest.mark.parametrize("written", [json.dumps, str])
def test_a_table_has_lists_of_messages_in_letters(written, tmp_path):
    import pandas

    def records(technique, **columns):
        pandas.DataFrame({name: [written(value)] for name, value in columns.items()}).to_csv(
            tmp_path / "a.csv", index=False
        )
        method = technique.__name__.lower()
        return list(technique(method=method, source=tmp_path, licence="mine").records(tmp_path))

    [chat] = records(chats.Chats, messages=[SHORT, ASK, SAY | {"content": 'It\'s "4", 2 + 2'}])
    assert (chat["prompt"], chat["solution"]) == ([SHORT, ASK], 'It\'s "4", 2 + 2')
    [pair] = records(preferences.Preferences, chosen=[ASK, SAY], rejected=[ASK, SAY | {"content": "5"}])
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("2 + 2?", "4", "5")
    (tmp_path / "a.csv").unlink()
    [found] = read(tmp_path, {"prompt": "Which?", "completion": '[{"name": "a"}]'})
    assert found["solution"] == '[{"name": "a"}]'  # an answer in JSON is no list of messages


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages, turn 1: role 'robot' is none of system, "),
        ({"messages": "2 + 2?"}, "messages: '2 [+] 2[?]' is no list of messages"),
        ({"messages": [ASK, {"role": "assistant", "content": None}]}, "turn 2: its content is None, which is no text"),
        ({"messages": [ASK | {"content": [{"type": "image_url"}]}, SAY]}, "turn 1: .*image_url.* is no text"),
        ({"prompt": 4, "completion": "4"}, "prompt: 4 is neither a text nor a list of messages"),
        ({"text": "2 + 2 = 4"}, "no conversation in its fields text"),
    ],
)
def test_what_is_no_conversation_is_named_in_one_line(row, said, tmp_path):
    with pytest.raises(UserError, match=f"a.jsonl, record 1.*{said}") as error:
        read(tmp_path, row)
    assert "\n" not in str(error.value)


def test_answers_are_numbers_where_every_last_reply_is_one(tmp_path):
    def scorers(*replies, **more):
        rows = [{"messages": [ASK, {"role": "assistant", "content": reply}]} for reply in replies]
        return {row.get("scorer") for row in read(tmp_path, *rows, **more)}

    numbers = ("4", "1,000", "2 * 3 = 6\n#### 6", " ", r"so \boxed{7}")
    assert scorers(*numbers) == {"number"}
    assert scorers(*numbers, "four") == {None} == scorers(*numbers, scorer="text")
    with pytest.raises(UserError, match="record 6: reply 'four' is no number, but `scorer` says that all are"):
        scorers(*numbers, "four", scorer="number")
    talk = {"messages": [ASK, {"role": "assistant", "content": "Hm."}, ASK, SAY]}
    assert read(tmp_path, talk)[0]["scorer"] == "number"


def test_a_pattern_of_a_row_comes_before_its_reply(tmp_path):
    rows = [SHAPES["completion"] | {"right": pattern} for pattern in (r"\b(4|four)\b", "", None)]
    found = read(tmp_path, *rows, pattern_field="right")
    assert [row["scorer"] for row in found] == ["pattern", "number", "number"]
    assert [row.get("pattern") for row in found] == [r"\b(4|four)\b", None, None]
    for wrong, said in (("(4", "is no regular expression: missing \\)"), (4, "4 is no text")):
        with pytest.raises(UserError, match=f"a.jsonl, record 1: pattern .*{said}"):
            read(tmp_path, SHAPES["completion"] | {"right": wrong}, pattern_field="right")
    with pytest.raises(
        UserError, match="record 1: no field 'right' \\(pattern_field\\); its fields are: prompt, completion"
    ):
        read(tmp_path, SHAPES["completion"], pattern_field="right")


def test_a_conversation_may_teach_its_last_reply_alone(tmp_path):
    assert [row.get("learn") for row in read(tmp_path, SHAPES["messages"], learn="last")] == ["last"]
    assert "learn" not in read(tmp_path, SHAPES["messages"])[0]


WEATHER = [
    {"role": "assistant", "content": "<call>weather</call>"},
    {"role": "tool", "content": "12", "name": "weather"},
]


def test_what_a_tool_says_is_taken_along(tmp_path):
    [found] = read(tmp_path, {"messages": [ASK, *WEATHER, SAY]})
    assert found["prompt"] == [ASK, *WEATHER] and found["solution"] == "4"
    shared = {
        "conversations": [
            {"from": "human", "value": "?"},
            {"from": "function", "value": "12"},
            {"from": "gpt", "value": "4"},
        ]
    }
    assert [turn["role"] for turn in read(tmp_path, shared)[0]["prompt"]] == ["user", "function"]


QWEN = (  # how Qwen2.5 and Qwen3 write a reply with calls (its chat_template, Apache-2.0)
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ message.content or '' }}{% for call in message.tool_calls or [] %}"
    "{% if message.content or not loop.first %}{{ '\\n' }}{% endif %}"
    '{{ \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
)
ADDED = {"function": {"name": "add", "arguments": {"of": [2, 2], "für": "alle"}}}
REPLIES = {
    "a call": {"content": None, "tool_calls": [ADDED]},
    "words and calls": {"content": "Let me see.", "tool_calls": [ADDED, ADDED]},
    "thought out": {"content": "4", "reasoning_content": "2 and 2."},
    "thought out and a call": {"content": "", "reasoning_content": "2 and 2.", "tool_calls": [ADDED]},
}


@pytest.mark.parametrize("name", REPLIES)
def test_calls_and_reasoning_are_written_as_qwen_writes_them(name, tmp_path, tokenizer):
    reply = {"role": "assistant"} | REPLIES[name]
    [found] = read(tmp_path, {"messages": [ASK, reply]})
    tokenizer = copy.deepcopy(tokenizer)
    theirs = tokenizer.apply_chat_template([ASK, reply], chat_template=QWEN, tokenize=False)
    ours = tokenizer.apply_chat_template(
        [ASK, {"role": "assistant", "content": found["solution"]}], chat_template=QWEN, tokenize=False
    )
    assert ours == theirs


def test_parts_and_old_names_of_calls_and_reasoning_are_the_same(tmp_path):
    [usual] = read(tmp_path, {"messages": [ASK, {"role": "assistant"} | REPLIES["thought out and a call"]]})
    call = ADDED["function"] | {"arguments": json.dumps(ADDED["function"]["arguments"])}
    parts = [{"type": "reasoning", "value": "2 and 2."}, {"type": "tool_call", "value": json.dumps(ADDED["function"])}]
    for other in (
        {"content": None, "thinking": "2 and 2.", "tool_calls": [{"id": "1", "type": "function", "function": call}]},
        {"content": "", "reasoning": "2 and 2.\n", "function_call": call},
        {"content": parts},
        {"content": [{"type": "thinking", "thinking": "2 and 2."}], "tool_calls": [call]},
    ):
        [found] = read(tmp_path, {"messages": [ASK, {"role": "assistant"} | other]})
        assert found["solution"] == usual["solution"]
    said = "<think>\n2 and 2.\n</think>\n\n4"
    [once] = read(
        tmp_path, {"messages": [ASK, {"role": "assistant", "content": said, "reasoning_content": "2 and 2."}]}
    )
    assert once["solution"] == said


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"content": "", "tool_calls": [{"id": "1"}]}, "{'id': '1'} is no call of a tool"),
        ({"content": "", "tool_calls": ["add"]}, "'add' is no call of a tool"),
        ({"content": "", "tool_calls": "add"}, "tool_calls is 'add', which is no list"),
        ({"content": "", "tool_calls": [{"name": "add", "arguments": "{2"}]}, "is no call of a tool"),
        ({"content": "4", "reasoning_content": 4}, "its content is 4, which is no text"),
    ],
)
def test_what_is_no_call_and_no_reasoning_is_named(turn, said, tmp_path):
    with pytest.raises(UserError, match=f"a.jsonl, record 1, messages, turn 2: .*{said}"):
        read(tmp_path, {"messages": [ASK, {"role": "assistant"} | turn]})
    with pytest.raises(UserError, match="turn 1: .*only texts are learnt here"):
        read(tmp_path, {"messages": [ASK | {"content": [{"type": "reasoning", "value": "?"}]}, SAY]})


def test_texts_beside_them_are_left_out_and_alone_refused(tmp_path):
    (tmp_path / "README.txt").write_text("What these are.")
    [found] = read(tmp_path, SHAPES["messages"])
    assert found["solution"] == "4"
    how = chats.Chats(method="chats", source=tmp_path, licence="mine")
    assert how.left_out(tmp_path) == ["README.txt"]
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match="only .txt files, which have no fields: give one of .jsonl, .json, "):
        list(how.records(tmp_path))


def test_another_shape_further_down_is_named(tmp_path):
    with pytest.raises(UserError, match="record 2: no field 'messages'; its fields are: prompt, completion"):
        read(tmp_path, SHAPES["messages"], SHAPES["completion"])


def test_nothing_said_is_left_out_and_two_answers_to_one_question_are_two(tmp_path):
    silent = [{"messages": []}, {"messages": [ASK]}, {"messages": [ASK, {"role": "assistant", "content": " "}]}]
    other = {"messages": [ASK, {"role": "assistant", "content": "Four."}]}
    rows = read(tmp_path, *silent, SHAPES["messages"], other, SHAPES["messages"])
    kept = [row for row in rows if clean.worth_keeping(row, 0)]
    assert [row["solution"] for row in kept] == ["4", "Four.", "4"] and len({clean.same(row) for row in kept}) == 2
    assert len({clean.identity(row) for row in kept}) == 1  # so both are in one split


TRL = {
    "prompt": {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    "messages": {"prompt": [ASK], "chosen": [SAY], "rejected": [SAY | {"content": "5"}]},
    "implicit": {"chosen": [ASK, SAY], "rejected": [ASK, SAY | {"content": "5"}]},
    "llama-factory": {"chosen_messages": [ASK, SAY], "rejected_messages": [ASK, SAY | {"content": "5"}]},
    "both": {"prompt": "2 + 2?", "chosen": [ASK, SAY], "rejected": [ASK, SAY | {"content": "5"}]},
}


@pytest.mark.parametrize("name", TRL)
def test_preferences_are_what_trl_makes_of_them(name, tmp_path):
    from trl.data_utils import maybe_extract_prompt

    [found] = read(tmp_path, TRL[name], technique=preferences.Preferences)
    expected = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    assert found == {"id": "a/0", "family": "preference", **expected}
    if name == "implicit":
        theirs = maybe_extract_prompt(TRL[name])
        assert [theirs[key][0]["content"] for key in expected] == list(expected.values())


SHAREGPT = {"from": "human", "value": "2 + 2?"}
PAIRS = {
    "texts": {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    "a message each": {
        "conversations": [SHAREGPT],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    "messages": {"messages": [ASK], "chosen": [SAY], "rejected": [SAY | {"content": "5"}]},
    "alpaca": {"instruction": "2 + 2?", "input": "", "chosen": "4", "rejected": "5"},
    "question": {"question": "2 + 2?", "chosen": "4", "rejected": "5"},
    "both with the prompt": {"prompt": "2 + 2?", "chosen": [ASK, SAY], "rejected": [ASK, SAY | {"content": "5"}]},
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_shape_is_the_same_preference(name, tmp_path):
    [found] = read(tmp_path, PAIRS[name], technique=preferences.Preferences)
    expected = {"id": "a/0", "family": "preference", "prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    assert found == expected
    [found] = read(tmp_path, PAIRS[name] | {"system": "Be short."}, technique=preferences.Preferences)
    assert found == expected | {"prompt": [SHORT, ASK]}


def test_a_conversation_with_a_verdict_is_a_verdict_on_its_last_reply(tmp_path):
    rows = [{"messages": [ASK, SAY], "label": True}, {"messages": [ASK, SAY, ASK, SAY], "label": "false"}]
    found = read(tmp_path, *rows, technique=preferences.Preferences)
    assert [(row["prompt"], row["solution"], row["liked"]) for row in found] == [
        ("2 + 2?", "4", True),
        ([ASK, SAY, ASK], "4", False),
    ]
    with pytest.raises(UserError, match="record 1: completion is not one reply to a prompt"):
        read(tmp_path, {"messages": [SAY, ASK], "label": True}, technique=preferences.Preferences)


def test_calls_of_tools_in_turns_of_their_own_are_the_assistants_words(tmp_path):
    said = [SHAREGPT, {"from": "function_call", "value": "add(2, 2)"}, {"from": "observation", "value": "4"}]
    [found] = read(tmp_path, {"conversations": [*said, {"from": "gpt", "value": "It is 4."}], "tools": "[]"})
    call, told = {"role": "assistant", "content": "add(2, 2)"}, {"role": "tool", "content": "4"}
    assert (found["prompt"], found["solution"]) == ([ASK, call, told], "It is 4.")


ADD = {
    "name": "add",
    "description": "Adds <|end|> numbers, für alle",
    "parameters": {"type": "object", "properties": {}},
}
OPENAI = [{"type": "function", "function": ADD}]


@pytest.mark.parametrize("given", [[ADD], json.dumps([ADD]), OPENAI, json.dumps(OPENAI)])
@pytest.mark.parametrize("technique", [chats.Chats, preferences.Preferences])
def test_tools_stand_before_all_that_is_said(given, technique, tmp_path):
    row = {"prompt": "2 + 2?", "system": "Be short.", "tools": given}
    row |= {"completion": "4"} if technique is chats.Chats else {"chosen": "4", "rejected": "5"}
    [found] = read(tmp_path, row, technique=technique)
    defined, *said = found["prompt"]
    assert said == [SHORT, ASK] and defined["role"] == "tools" and json.loads(defined["content"]) == OPENAI


@pytest.mark.parametrize("given", ["add", "[1]", [{"description": "?"}], {"name": "add"}, '{"name": "add"}'])
def test_what_is_no_list_of_tools_is_refused(given, tmp_path):
    with pytest.raises(UserError, match="record 1, tools: .* is no JSON list of tools"):
        read(tmp_path, {"prompt": "2 + 2?", "completion": "4", "tools": given})


TOOLED = "{% if tools %}<|tools|>{{ tools | tojson }}{% endif %}"


def test_a_template_writes_the_tools_as_transformers_does_or_is_refused(tokenizer, tmp_path):
    [row] = read(tmp_path, {"prompt": "2 + 2?", "completion": "4", "tools": [ADD]})
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TOOLED + CHATML
    expected = tokenizer.apply_chat_template([ASK], tools=OPENAI, tokenize=False, add_generation_prompt=True)
    assert "für alle" in expected
    ids = chat.prompt_ids(tokenizer, row["prompt"])
    assert tokenizer.decode(ids) == expected
    ends = tokenizer.convert_tokens_to_ids("<|end|>")
    assert ids.count(ends) == 1  # the question's own; what a description quotes is text
    assert packing.turns(tokenizer, row)[0][0][: len(ids)] == ids
    tokenizer.chat_template = CHATML
    with pytest.raises(UserError, match="the chat template drops what role 'tools' says.* write it into `system`"):
        packing.turns(tokenizer, row)


def test_preferences_without_two_replies_are_refused(tmp_path):
    for row in ({"chosen": "4", "rejected": "5"}, {"prompt": [ASK], "chosen": [ASK, SAY, ASK], "rejected": [SAY]}):
        with pytest.raises(UserError, match="record 1: chosen and rejected are not two replies to one prompt"):
            read(tmp_path, row, technique=preferences.Preferences)
    with pytest.raises(UserError, match="no field 'rejected'; a preference has prompt, chosen and rejected"):
        read(tmp_path, {"prompt": "2 + 2?", "chosen": "4"}, technique=preferences.Preferences)


def test_unpaired_preferences_are_what_trl_makes_of_pairs(tmp_path):
    """Its own rows of a pair, once liked and once not."""
    import datasets
    from trl.data_utils import unpair_preference_dataset

    pairs = [{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, {"prompt": "3 + 3?", "chosen": "6", "rejected": "7"}]
    theirs = unpair_preference_dataset(datasets.Dataset.from_list(pairs)).to_list()
    found = read(tmp_path, *theirs, technique=preferences.Preferences)
    expected = [(row["prompt"], row["completion"], row["label"]) for row in theirs]
    assert [(row["prompt"], row["solution"], row["liked"]) for row in found] == expected
    assert {frozenset(row) for row in found} == {frozenset(("id", "family", "prompt", "solution", "liked"))}


def test_unpaired_preferences_come_as_messages_and_from_tables(tmp_path):
    said = {"prompt": [SHORT, ASK], "completion": [SAY], "label": True}
    [found] = read(tmp_path, said, technique=preferences.Preferences)
    assert (found["prompt"], found["solution"], found["liked"]) == ([SHORT, ASK], "4", True)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.csv").write_text("prompt,completion,label\n2 + 2?,4,True\n2 + 2?,5,false\n2 + 2?,6,0\n")
    found = list(preferences.Preferences(method="preferences", source=tmp_path, licence="mine").records(tmp_path))
    assert [row["liked"] for row in found] == [True, False, False]


def test_unpaired_preferences_without_a_verdict_are_refused(tmp_path):
    row = {"prompt": "2 + 2?", "completion": "4", "label": True}
    wrong = {
        "record 1: label 'good' is none of true, false": [row | {"label": "good"}],
        "record 2: no field 'label'; a reply that was liked or not has prompt, completion, label": [
            row,
            SHAPES["completion"],
        ],
        "record 1: completion is not one reply to a prompt": [row | {"completion": [ASK, SAY]}],
    }
    for said, rows in wrong.items():
        with pytest.raises(UserError, match=said):
            read(tmp_path, *rows, technique=preferences.Preferences)


CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FORGETFUL = CHATML.replace(
    "message['content']", "(message['content'] if loop.last or message['role'] == 'user' else '-')"
)


@pytest.mark.parametrize("template", [CHATML, FORGETFUL])
def test_every_reply_is_learnt_once_behind_what_the_model_is_shown(template, tokenizer):
    """A template that shortens earlier replies makes an example of each; any other one example of all."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    row = {"id": "a/0", "prompt": [SHORT, ASK, SAY, {"role": "user", "content": "Sure?"}], "solution": "Yes."}
    examples = packing.turns(tokenizer, row)
    assert len(examples) == (1 if template == CHATML else 2)
    learnt = [tokenizer.decode([i for i in labels if i != packing.IGNORE]) for _, labels, _ in examples]
    assert "".join(learnt) == "4<|end|>Yes.<|end|>"
    asked = chat.prompt_ids(tokenizer, row["prompt"])
    ids, labels, positions = examples[-1]
    assert ids[: len(asked)] == asked and labels[len(asked) :] == ids[len(asked) :]
    assert positions == list(range(len(ids)))


def test_a_row_may_teach_its_last_reply_alone(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHATML
    row = {"id": "a/0", "prompt": [SHORT, ASK, SAY, {"role": "user", "content": "Sure?"}], "solution": "Yes."}
    [(ids, labels, _)], [(same, last, _)] = (
        packing.turns(tokenizer, row),
        packing.turns(tokenizer, row | {"learn": "last"}),
    )
    assert same == ids and labels != last
    assert tokenizer.decode([i for i in last if i != packing.IGNORE]) == "Yes.<|end|>"


DROPS = CHATML.replace("%}{{ '<|' + m", "%}{% if message['role'] != 'tool' %}{{ '<|' + m").replace(
    "'<|end|>' }}", "'<|end|>' }}{% endif %}"
)
RAISES = CHATML.replace(
    "%}{{ '<|' + m", "%}{% if message['role'] == 'tool' %}{{ raise_exception('No tools') }}{% endif %}{{ '<|' + m"
)


def test_a_tool_is_heard_where_the_template_has_its_role(tokenizer):
    tokenizer, row = copy.deepcopy(tokenizer), {"id": "a/0", "prompt": [ASK, *WEATHER], "solution": "4"}
    tokenizer.chat_template = CHATML
    [(ids, labels, _)] = packing.turns(tokenizer, row)
    assert "<|tool|>12<|end|><|assistant|>4<|end|>" in tokenizer.decode(ids)
    assert tokenizer.decode([i for i in labels if i != packing.IGNORE]) == "<call>weather</call><|end|>4<|end|>"
    for template, said in (
        (DROPS, "drops what role 'tool' says"),
        (RAISES, "cannot write user, assistant, tool .*No tools"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=f"record 'a/0': the chat template {said}"):
            packing.turns(tokenizer, row)


def test_a_reply_that_was_liked_or_not_is_not_learnt_by_heart(tokenizer):
    with pytest.raises(UserError, match="record 'a/0' is a reply that was liked or not: learnt by heart are"):
        packing.turns(tokenizer, {"id": "a/0", "prompt": "2 + 2?", "solution": "5", "liked": False})


# As in the template of Qwen 3: the system's own words, then what may be called.
TOOLS_OF_QWEN = """\
{%- if tools %}
    {{- '<|system|>' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n" }}
    {{- "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments " }}
    {{- "within <tool_call></tool_call> XML tags:\\n<tool_call>\\n" }}
    {{- "{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|end|>" }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {{- '<|' + message.role + '|>' + message.content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}"""


@pytest.mark.parametrize("system", [None, "Be short."])
@pytest.mark.parametrize("technique", [chats.Chats, preferences.Preferences])
def test_tools_in_the_systems_words_are_what_hermes_and_qwen_write(system, technique, tokenizer, tmp_path):
    row = {"prompt": "2 + 2?", "tools": [ADD, ADD]} | ({"system": system} if system else {})
    row |= {"completion": "4"} if technique is chats.Chats else {"chosen": "4", "rejected": "5"}
    written = []
    for kind, template in (("template", TOOLS_OF_QWEN), ("system", CHATML)):
        [found] = read(tmp_path, row, technique=technique, tools=kind)
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template
        written.append(chat.render(tokenizer, found["prompt"]))
    assert written[0] == written[1] and "<tools>" in written[0]


def test_without_tools_nothing_is_put_into_the_system(tmp_path):
    rows = [{"prompt": "2 + 2?", "completion": "4"}, {"prompt": "2 + 2?", "completion": "4", "system": "Be short."}]
    for given in rows:
        [plain], [found] = (read(tmp_path, given, tools=kind) for kind in ("template", "system"))
        assert plain == found
