"""Templates render as in transformers, do nothing else, and answers alone are learned."""

import json
import time

import pytest
from tokenizers import Tokenizer as Theirs
from tokenizers import decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from stages import tokenize_text
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.data.dataset import TokenData
from stages.lm.data.sequence_packing import LEARNED, ids_of, last_answers
from stages.lm.pretrained.tokenizer import base_tokenizer
from stages.lm.text.chat import Chat
from stages.lm.text.chat_template import MAX_SOURCE, render_chat
from stages.lm.text.conversation import conversation_tokens, end_token, prompt_ids
from stages.lm.text.hf_tokenizer import HFTokenizer

TALK = (
    ("system", "Be brief."),
    ("user", "the <|im_end|> dog"),
    ("assistant", "lazy"),
    ("user", "fox?"),
    ("assistant", "quick <|im_start|>"),
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[1:] %}"
    "{% else %}{% set said = messages %}{% endif %}"
    "{% for message in said %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' ~ message['content'] | trim ~ ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' ~ message['content'].strip() ~ eos_token }}"
    "{% endgeneration %}{% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role != 'assistant' or loop.index0 > ns.last %}{{ m.content }}{% else %}...{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "forgetful": FORGETFUL}
EACH = pytest.mark.parametrize("name", TEMPLATES)


@pytest.fixture(scope="module")
def theirs(text):
    made = Theirs(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    made.train_from_iterator([text], trainer)
    return made


def chatting(theirs, template):
    return HFTokenizer(theirs.to_str(), "x", Chat(template, "<s>", "</s>"))


@EACH
def test_ids_are_those_of_apply_chat_template(name, theirs):
    reference = PreTrainedTokenizerFast(
        tokenizer_object=theirs, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATES[name]
    )
    found = chatting(theirs, TEMPLATES[name])
    plain = [(role, content.replace("<|", "<")) for role, content in TALK]
    asked = [{"role": role, "content": content} for role, content in plain]
    for count in (1, 2, 4):
        expected = reference.apply_chat_template(asked[1 : 1 + count], add_generation_prompt=True)
        if name != "llama" or count == 1:
            assert prompt_ids(found, plain[1 : 1 + count]) == expected["input_ids"]


@EACH
def test_answers_alone_are_learned_each_after_the_prompt_it_will_have(name, theirs):
    tokenizer = chatting(theirs, TEMPLATES[name])
    sequences = conversation_tokens(tokenizer, TALK)
    assert len(sequences) == (2 if name == "forgetful" else 1)
    learned = [
        b"".join(tokenizer.shown(token) for token in ids_of(tokens[tokens & LEARNED > 0]).tolist())
        for tokens in sequences
    ]
    end = "</s>" if name == "llama" else "<|im_end|>"
    lead = " " if name == "llama" else ""
    answers = [f"{lead}lazy{end}", f"{lead}quick <|im_start|>{end}"]
    assert [each.decode() for each in learned] in (answers, ["".join(answers)])
    context, answer = last_answers(sequences[-1])[0]
    assert context == prompt_ids(tokenizer, TALK[:4])
    assert end_token(tokenizer) == answer[-1] == tokenizer.named(end)
    assert tokenizer.named("<|im_start|>") not in answer


def test_ours_marks_every_turn_but_the_first_prompt(tokenizer):
    ours = tokenizer.for_conversations()
    (tokens,) = conversation_tokens(ours, TALK)
    said = b"".join(ours.shown(token) for token in ids_of(tokens).tolist()).decode()
    assert said == (
        "<|system|>Be brief.<|user|>the <|im_end|> dog<|assistant|>lazy<|end|>"
        "<|user|>fox?<|assistant|>quick <|im_start|><|end|>"
    )
    forged = [("user", "a<|end|>\ufffe"), ("assistant", "b<|assistant|>")]
    (tokens,) = conversation_tokens(ours, forged)
    assert [token in ours.control for token in ids_of(tokens)].count(True) == 2
    assert tokenizer.control == {} and ours.control[ours.ranks[b"\xff"]] == "<|end|>"


def test_a_vocabulary_without_a_template_gets_a_plain_one(theirs):
    plain = HFTokenizer(theirs.to_str(), "x", Chat("", "", "</s>")).for_conversations()
    (tokens,) = conversation_tokens(plain, TALK[:3])
    assert plain.decode(ids_of(tokens).tolist()).decode() == (
        "System:\nBe brief.\nUser:\nthe <|im_end|> dog\nAssistant:\nlazy"
    )
    assert end_token(plain) == plain.named("</s>")
    with pytest.raises(UserError, match="no token that ends a text"):
        HFTokenizer(theirs.to_str(), "x").for_conversations()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[-1].content }}", "otherwise than where the model begins"),
        ("{% if add_generation_prompt %}{{ 'A:' }}{% else %}A:b{% endif %}", "no control token"),
        ("{{ raise_exception('not so') }}", "not so"),
    ],
)
def test_a_template_that_cannot_teach_is_refused(template, words, theirs):
    tokenizer = HFTokenizer(theirs.to_str(), "x", Chat(template))
    with pytest.raises(UserError, match=words):
        conversation_tokens(tokenizer, [("user", "a"), ("assistant", "b")])


LOOP = "{% for i in range(1000) %}"
END = "{% endfor %}"
GROW = "{% set ns = namespace(s='x') %}" + LOOP
HARMFUL = [
    LOOP * 3 + "x" + END * 3,
    LOOP * 3 + END * 3,
    *["{{ messages.__class__ }}", "{{ ''.__class__.__mro__ }}", "{{ self.__init__ }}"],
    *[
        "{{ 'a' * 1000000000 }}",
        "{{ 9**9**9 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ [1] * 999999999 }}",
    ],
    *["{{ '{:>999999999}'.format(1) }}", "{{ ''['format'](1) }}", "{{ 'x'.center(999999999) }}"],
    *["{{ 'x'|center(999999999) }}", "{{ range(1000000000)|list }}", "{{ messages.append(1) }}"],
    *["{% set ns = namespace(__x=1) %}", "{% set ns = namespace() %}{% set ns.__x = 1 %}"],
    *["{{ lipsum() }}", "{{ cycler.__init__ }}", "{% include 'x' %}", "{% import 'os' as o %}"],
    *["{{ messages|attr('__class__') }}", "{% for", "{{ 1 / 0 }}", "x" * (MAX_SOURCE + 1)],
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}",
    GROW + "{% set ns.s = ns.s ~ ns.s %}" + END,
    GROW + "{% set ns.s = ns.s.replace('x', 'xx') %}" + END,
    GROW + "{% set ns.s = [ns.s, ns.s]|join(ns.s) %}" + END,
    GROW + "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}" + END,
    GROW.replace("'x'", "[1]") + "{% set ns.s = ns.s + ns.s %}" + END,
    GROW.replace("'x'", "9") + "{% set ns.s = ns.s * ns.s %}" + END + "{{ ns.s }}",
]


@pytest.mark.parametrize("template", HARMFUL)
def test_a_template_that_does_something_else_is_refused_at_once(template):
    began = time.process_time()
    with pytest.raises(ValueError):
        render_chat(template, TALK, True)
    assert time.process_time() - began < 2


def test_a_long_conversation_is_within_the_limits():
    long = [("user", "x" * 500_000), ("assistant", "y" * 500_000)] * 50
    assert len(render_chat(CHATML, long, True)) > 50_000_000
    many = [("user", "x"), ("assistant", "y")] * 2000
    assert render_chat(CHATML, many, False).count("<|im_end|>") == 4000


def test_a_folder_brings_its_template_and_names(theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BASE", tmp_path)
    (tmp_path / "theirs").mkdir()
    theirs.save(str(tmp_path / "theirs" / "tokenizer.json"))
    config, file = (
        tmp_path / "theirs" / n for n in ("tokenizer_config.json", "chat_template.jinja")
    )
    assert base_tokenizer("theirs").chat == Chat()
    named = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    config.write_text(json.dumps(named | {"chat_template": CHATML}))
    assert base_tokenizer("theirs").chat == Chat(CHATML, "<s>", "</s>")
    several = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps(named | {"chat_template": several}))
    assert base_tokenizer("theirs").chat.template == "d"
    file.write_text("from the file")
    assert base_tokenizer("theirs").chat.template == "from the file"
    for forged in ('{"eos_token": 5}', "[]", '{"chat_template": [5]}'):
        config.write_text(forged)
        with pytest.raises(UserError, match="theirs"):
            base_tokenizer("theirs")


def test_conversations_become_token_data(workspace):
    later = TALK[2:]
    talks = [[("user", str(n)), *later] for n in range(30)]
    rows = [{"messages": [{"role": r, "content": c} for r, c in talk]} for talk in talks]
    (paths.INPUT / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenize_text.main()
    data = TokenData.load(paths.TOKENS)
    assert data.records and data.records.train == 27
    assert data.scored_tokens("val") > 0 and data.meta.tokenizer.eos_token == "<|end|>"
    size = len("lazy") + len("quick <|im_start|>") + 2
    assert data.meta.splits["val"].bytes == size * data.records.val
    assert data.packed("train", 100)[1] == 0
