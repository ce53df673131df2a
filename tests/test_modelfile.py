"""Ollama's Modelfile: its template writes what the chat template writes."""

import re

import pytest

from stages.lm.export.modelfile import PROMPT_ALONE, go_template, write_modelfile
from stages.lm.inference.loading import LoadedModel
from stages.lm.text.chat import OWN_CHAT, OWN_TEMPLATE, PLAIN_TEMPLATE, Chat

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "ours": OWN_TEMPLATE,
    "plain": PLAIN_TEMPLATE,
    "chatml": CHATML,
    "smollm2": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}" + CHATML,
    "llama3": "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma3": "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ first if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}",
}
REFUSED = {
    "changes what is said": "{% for m in messages %}{{ m.content.upper() }}a{% endfor %}",
    "says it twice": "{% for m in messages %}{{ m.content + m.content }}{% endfor %}",
    "leaves out": "{{ messages[-1].content }}",
    "counts": "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "braces": "{% for m in messages %}{{ '{' }}{{ m.content }}{% endfor %}",
    "quotes": '{% for m in messages %}{{ m.content }}"""{% endfor %}',
    "unseen characters": "{% for m in messages %}{{ m.content }}\u200b{% endfor %}",
    "no template": "{% for %}",
}


def rendered(template, messages):
    """What Go makes of the few actions that are used."""
    head, body, tail = re.fullmatch(
        r"(.*?){{ range \$i, \$_ := .Messages }}(.*){{ end }}(.*)", template, re.DOTALL
    ).groups()
    system = "".join(content for role, content in messages if role == "system")
    written = head
    for i, (role, content) in enumerate(messages):
        states = [True]
        taken = [True]
        for text in re.split("({{.*?}})", body):
            action = text[3:-3] if text.startswith("{{") else None
            if action is None:
                written += text * all(states)
            elif action == "end":
                states.pop(), taken.pop()
            elif action == ".Content":
                written += content * all(states)
            elif action == "continue":
                if all(states):
                    break
            else:
                if action.startswith("else"):
                    states.pop()
                    before = taken.pop()
                else:
                    before = False
                holds = {
                    'if eq .Role "system"': role == "system",
                    'else if eq .Role "assistant"': role == "assistant",
                    "else if eq $i 0": i == 0,
                    "else if and $.System (eq $i 1)": bool(system) and i == 1,
                    "else": True,
                }[action]
                states.append(holds and not before)
                taken.append(holds or before)
    return written + tail


@pytest.mark.parametrize("name", TEMPLATES)
def test_go_writes_what_jinja_writes(name):
    chat = Chat(TEMPLATES[name], "<s>", "</s>")
    template = go_template(chat)
    turns = [("user", "a b"), ("assistant", "{{ c }}"), ("user", "d\ne"), ("assistant", "f")]
    conversations = [turns[:1], turns[:3], [*turns, ("user", "g")]]
    if name != "mistral":
        conversations += [[("system", "s"), *each] for each in conversations]
    for messages in conversations:
        assert rendered(template, messages) == chat.render(messages, True)
    without = go_template(chat, ["<s>"])
    assert "<s>" not in without and rendered(without, turns[:3]) == chat.render(
        turns[:3], True
    ).removeprefix("<s>")


def test_messages_that_a_template_has_no_words_for_are_left_out():
    template = go_template(Chat(TEMPLATES["mistral"], "<s>", "</s>"))
    assert rendered(template, [("system", "s"), ("user", "u")]) == "<s>[INST] u [/INST]"


@pytest.mark.parametrize("why", REFUSED)
def test_what_go_cannot_express_is_not_written(why):
    assert go_template(Chat(REFUSED[why])) is None


def test_the_file_names_the_first_format_and_where_answers_end(make_model, tokenizer, tmp_path):
    model = make_model(vocab_size=tokenizer.vocab_size, context=48)
    own = tokenizer.for_conversations()
    kinds = {"text": tokenizer, "records": own}
    told = {}
    for name, each in kinds.items():
        loaded = LoadedModel(model.config, lambda: model, each, "float32", {}, 0)
        write_modelfile(loaded, tmp_path, ["model-f16.gguf", "model-q8_0.gguf"])
        told[name] = (tmp_path / "Modelfile").read_text("utf-8").splitlines()
    assert told["records"][:2] == ["FROM ./model-f16.gguf", "# FROM ./model-q8_0.gguf"]
    assert told["records"][2] == f'TEMPLATE """{go_template(OWN_CHAT)}"""'
    assert told["records"][3] == 'PARAMETER stop """<|end|>"""'
    assert told["text"][2] == f'TEMPLATE """{PROMPT_ALONE}"""'
    assert "PARAMETER num_ctx 48" in told["text"] and "PARAMETER top_k 0" in told["text"]
    assert not any("stop" in line for line in told["text"])


def test_a_template_that_is_not_written_is_told(make_model, tokenizer, tmp_path):
    model, own = make_model(vocab_size=tokenizer.vocab_size), tokenizer.for_conversations()
    own.chat = Chat("{{ '{' }}" + OWN_TEMPLATE, eos_token="<|end|>")
    loaded = LoadedModel(model.config, lambda: model, own, "float32", {}, 0)
    write_modelfile(loaded, tmp_path, ["model-f16.gguf"])
    told = (tmp_path / "Modelfile").read_text("utf-8")
    assert "# No TEMPLATE" in told and "\nTEMPLATE" not in told
