"""Ollama's recipe: a chat template in Go's language that writes what Jinja writes, or none; every stop token."""

import copy
import re

import pytest

from stages.export.parts import modelfile
from stages.lib.frame.errors import UserError
from stages.lib.text import chat

MESSAGES = [
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "12 + 3?"},
    {"role": "assistant", "content": "15"},
    {"role": "user", "content": "and  'then'\n"},
]
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SAID = {  # templates that Go can say
    "plain": "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "chatml": CHATML,
    "joined": CHATML.replace(" + ", " ~ "),
    "lines": "{% for message in messages %}\n    {{- '<|user|>' ~ message['content'] + eos_token }}\n{% endfor %}\n",
}
LEFT_OUT = {
    "condition": "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ m.content }}{% endfor %}",
    "filter": "{% for m in messages %}{{ m['content'] | trim }}{{ eos_token }}{% endfor %}",
    "slice": "{% for m in messages[1:] %}{{ m['content'] }}{{ eos_token }}{% endfor %}",
    "variable": "{% set x = messages[0] %}{{ x['content'] }}{{ messages[-1]['content'] }}{{ eos_token }}",
    "text of Go": "{% for m in messages %}{{ '{' }}{{ '{ .Role' }}{{ m['content'] }}{{ eos_token }}{% endfor %}",
    "quotes": '{% for m in messages %}"""{{ m[\'content\'] }}{{ eos_token }}{% endfor %}',
    "tools": "{% if tools %}{{ tools }}{% endif %}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}",
}


@pytest.fixture
def with_template(tokenizer):
    def change(template):
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        return other

    return change


def go(template):
    """What Go's text/template makes of it: a range over messages, two fields, nothing else."""
    before, body, after = re.fullmatch(r"(.*)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", template, re.S).groups()
    turns = [body.replace("{{ .Role }}", m["role"]).replace("{{ .Content }}", m["content"]) for m in MESSAGES]
    text = before + "".join(turns) + after
    assert "{{" not in text and "{%" not in text
    return text


@pytest.mark.parametrize("name", SAID)
def test_go_writes_what_jinja_writes(name, with_template):
    tokenizer = with_template(SAID[name])
    text = modelfile.modelfile(tokenizer, 256)
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert go(re.search(r'TEMPLATE """(.*)"""', text, re.S)[1]) == expected
    assert text.startswith("FROM ./model.gguf\n") and "PARAMETER num_ctx 256\n" in text


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_go_may_not_say_is_left_to_the_gguf(name, with_template):
    assert "TEMPLATE" not in modelfile.modelfile(with_template(LEFT_OUT[name]), 256)


def test_every_stop_token_is_named(tokenizer, with_template):
    """A turn that ends with another token than a text."""
    other = with_template(CHATML.replace("im_end", "system"))
    assert chat.stops(other) == [3, 2]
    text = modelfile.modelfile(other, None)
    assert re.findall("PARAMETER (.*)", text) == ['stop "<|system|>"', 'stop "<|end|>"']
    assert modelfile.quoted('a"b') == '"""a"b"""'
    assert modelfile.quoted("a\nFROM x") == '"""a\nFROM x"""'


@pytest.mark.parametrize("token", ['x"""\nADAPTER ./other.gguf\n#', 'x"'])
def test_a_token_that_would_end_its_quotes_is_refused(token):
    with pytest.raises(UserError, match="no Modelfile can say: choose safetensors"):
        modelfile.quoted(token)
