"""YAML means here what it means to DVC, or is refused in a sentence, at once."""

import itertools
import math
import time

import pytest
from dvc.utils.serialize import parse_yaml as dvc_parse_yaml

from stages.lm.core.errors import UserError
from stages.lm.core.yaml_text import MAX_CHARACTERS, MAX_LEVELS, parse_yaml

REFUSED = object()

DIGITS = ["0", "00", "7", "8", "010", "08", "1_000", "_1", "1_", "-_", "123456789012345678901"]
BASES = ["0x10", "0X10", "0x_", "0o17", "0o8", "0o", "0b101", "0b2", "0b_", "x10", "0xFFFFFFFFFF"]
FRACTIONS = ["1.", ".5", "1.5", "1_0.5_0", "._", ".", "..5", "1.2.3", "0.1e", "1,5", "01.5"]
POWERS = ["1e5", "1e-05", "1E+5", "1.e5", ".5e3", ".5e+3", "1e", "e5", "1_0e2", "1e5.0", "1e999"]
BEYOND = [".inf", ".Inf", ".INF", ".iNF", ".nan", ".NaN", ".NAN", "inf", "nan", "9" * 5000]
SIXTIES = ["1:30", "190:20:30", "1:30.5", "01:02", "0:0", "1:99", "12:30:45"]
NUMBERS = DIGITS + BASES + FRACTIONS + POWERS + BEYOND + SIXTIES
WORDS = [
    spelling
    for word in ("true", "false", "yes", "no", "on", "off", "y", "n", "null", "~", "none", "auto")
    for spelling in (word, word.capitalize(), word.upper(), word + "x", word[:1] + word[1:].upper())
]
DATES = [
    "2024-01-01", "2024-13-45", "2024-1-1", "20240101", "2024-01-01T01:02:03Z", "2024-01",
    "2024-01-01 01:02:03.5 +01:00", "2024-1-1 1:00:00", "2024-01-01 was a day", "12:00:00",
]  # fmt: skip
PLAIN = [
    "", "=", "<<", "a b", "a:b", "a#b", "a #b", "-a", "- a", "?a", "? a", "a: b", ":a", ": a",
    "@a", "`a", "%a", ",a", "|", ">", "!", "&", "*", "&a", "*a", "&a 5", "!a 5", "[", "]", "{",
    "}", "a]", "a\tb", "\ta", "a\n  b", "a\nb", "a\n\n  b", "é", "😀", "\x07", "\x00", "\x7f",
    "a\x85b", "a\u2028b", "a\ufeffb", "a\rb", "a\r\n  b", "- 1\n  - 2",
]  # fmt: skip
QUOTED = [
    '"4"', "'4'", "'it''s'", "'a", '"a', '"\\x41\\u0041\\U0001F600"', '"\\U99999999"', '"\\/"',
    '"\\e\\_\\N\\L\\P\\0"', '"\\q"', '"\\ud800"', '"a\\\n  b"', "'a\n\n  b'", '"yes"', "'010'",
    '"a"b', "'a' #b", '""', "''", "'a\n%b'",
]  # fmt: skip
BLOCKS = [
    "|\n  a\n", ">\n  a\n  b\n", "|-\n  a\n", "|+\n  a\n\n", "|2\n    a\n", "|\n  010\n",
    "|\n a\n\n", ">-\n  a\n\n  b\n", "|\na\n", "|x\n  a\n", ">1-\n a\n",
]  # fmt: skip
TAGS = [
    f"{tag} {value}".strip()
    for tag in ("!", "!!int", "!!float", "!!str", "!!bool", "!!null", "!!binary", "!!set", "!!omap",
                "!!timestamp", "!!python/name:os.system", "!!python/object/apply:os.getcwd", "!x")
    for value in ("", "5", "'5'", "abc", "[1]", "{a: 1}")
]  # fmt: skip
FLOW = [
    "[]", "{}", "[1, 010, yes]", "[1 2]", "[1,]", "[,]", "{a}", "{a: 1, a: 2}", "{a: 1, 'a': 2}",
    "{a:1}", '{"a":1}', "{a:}", "[a:]", "[a: 1]", "{a: b:c}", "{a: [b, {c: d}]}", "{1: a}",
    "{yes: a}", "{true: a}", "{~: a}", "{[1]: a}", "{{a: 1}: b}", "{? a : b}", "[?a]", "{a: -}",
    "{<<: {a: 1}}", "{<<: [{a: 1}, {a: 2}], b: 3}", "{=: 1}", "{1: a, 1.0: b}", "{a, b: }",
    "[a]]", "[http://a, b]", "{a:{b}}", "{2024-01-01: a}",
]  # fmt: skip
VALUES = [
    *(sign + number for sign, number in itertools.product(("", "-", "+"), NUMBERS)),
    *WORDS, *DATES, *PLAIN, *QUOTED, *BLOCKS, *TAGS, *FLOW,
]  # fmt: skip
DOCUMENTS = [
    "", " ", "#", "---", "...", "--- a", "---\na: 1\n...\n", "a: 1\n---\nb: 2", "|\n...\n",
    "%YAML 1.1\n---\na: 010", "%YAML 1.2\n---\na: 010", "%YAML 9.9\n---\na: 1",
    "%TAG ! x\n---\na: !b 1", "%FOO\n---\na: 1", "\ufeffa: 010", "a: 1\na: 2",
    "a:\n  b: 1\n  b: 1", "a: &x 1\nb: *x", "a: &x {b: 1}\nc: *x",
    "a: &x {b: 1}\nc:\n  <<: *x\n  b: 2", "a: &x [*x]", "&x a: *x", "a: &x 1\nb: &x 2", "a: *y",
    "<<: {a: 1}\n<<: {b: 1}", "? a\n: 010", "? |\n  a\n: 1", "010: a", "a : 1", "a:1", "'a' : 1",
    "a: 1\n  b: 2", "a:\n- 010\n- yes", "a:\n\tb: 1", "a:\r\n  b: 010\r\n", "a: 1 # 2", "a: \n",
    "- a", "on: 1", "a: 1\rb: 2",
]  # fmt: skip


def read(parse, text):
    try:
        return parse(text, "params.yaml")
    except UserError as error:
        assert str(error).startswith("params.yaml") and str(error).endswith("."), error
        return REFUSED
    except Exception:
        assert parse is dvc_parse_yaml, text
        return REFUSED


def same(ours, dvcs):
    """Equal in value, type and order; also where both are NaN."""
    if type(ours) is not type(dvcs):
        return False
    if isinstance(ours, dict):
        return list(ours) == list(dvcs) and all(same(ours[key], dvcs[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(dvcs) and all(map(same, ours, dvcs))
    return ours == dvcs or (ours != ours and dvcs != dvcs)


@pytest.mark.parametrize("frame", ["train:\n  seed: {}\n", "{}: 1\n", "a: [{}]\n", "- {}", None])
def test_a_spelling_means_what_it_means_to_dvc_or_is_refused(frame):
    read_alike = 0
    for part in VALUES if frame else DOCUMENTS:
        text = frame.replace("{}", part) if frame else part
        ours = read(parse_yaml, text)
        if ours is REFUSED:
            continue
        # DVC makes an empty document a dict.
        assert same({} if ours is None else ours, read(dvc_parse_yaml, text)), text
        read_alike += 1
    assert read_alike > (100 if frame else 10)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("0o17", 15), ("0x10", 16), ("1_000", 1000), ("1e5", 1e5), ("1e-05", 1e-5),
        (".5", 0.5), ("4.0", 4.0), ("yes", "yes"), ("on", "on"), ("1:30", "1:30"), ("true", True),
        ("~", None), ("-0o7", -7), ("0b11", 3), (".inf", math.inf), ("'010'", "010"),
    ],
)  # fmt: skip
def test_what_is_usual_is_not_refused(text, value):
    assert same(parse_yaml(f"a: {text}", "params.yaml"), {"a": value})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train:\n  seed: 1\n  seed: 2", ["line 3", "seed", "duplicate"]),
        ("train:\n  seed: !!int abc", ["abc"]),
        ("train:\n  seed: 2024-01-01", ["train.seed holds 2024-01-01", "date", "quotes"]),
        ("train:\n  5: 1", ["train holds 5", "quotes"]),
        ("a: 1\n---\nb: 1", ["another document"]),
        ("train:\n  seed: [", ["line 2"]),
        ("a: \x00", ["#x0000"]),
    ],
)
def test_a_refusal_says_what_and_where(text, parts):
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "params.yaml")
    assert all(part in str(caught.value) for part in parts), caught.value


DEEP = MAX_CHARACTERS // 2
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB, "a: &a [*a]", "[" * 10_000, "[" * DEEP, "{a: " * (DEEP // 2), "- " * DEEP,
        "? " * DEEP, "[a: " * (DEEP // 2), "{[" * DEEP, "[" * 30 + "]" * 30, "!" * DEEP,
        "a: '" + "x" * DEEP, "a: b\n" * DEEP, "x" * 10_000_000, "a: [" + "1," * DEEP,
        "".join(f"{' ' * i}a:\n" for i in range(400)),
    ],
    ids=range(16),
)  # fmt: skip
def test_what_is_deep_or_large_is_refused_at_once(text):
    began = time.process_time()
    with pytest.raises(UserError):
        parse_yaml(text, "params.yaml")
    assert time.process_time() - began < 5, "a second or so, on a machine that is not busy"


def test_groups_within_groups_are_read_to_a_depth_that_no_settings_have():
    text = "{a: " * (MAX_LEVELS - 1) + "1" + "}" * (MAX_LEVELS - 1)
    assert same(parse_yaml(text, "params.yaml"), dvc_parse_yaml(text, ""))
