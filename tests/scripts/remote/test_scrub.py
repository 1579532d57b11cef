"""Text of strangers: nothing that a terminal obeys, no secrets however they are written."""

import base64
import codecs
import html
import json
import urllib.parse

import pytest

from scripts.remote.scrub import LONGEST, plain, redact, redact_address, say, scrub

KEY = "sk-Very/secret+0123456789=Z"
EACH = {
    "as it is": str,
    "upper case": str.upper,
    "lower case": str.lower,
    "a URL's": lambda s: urllib.parse.quote(s, safe=""),
    "a form's": urllib.parse.quote_plus,
    "every character of a URL": lambda s: "".join(f"%{ord(c):02x}" for c in s),
    "a URL's, twice": lambda s: urllib.parse.quote(urllib.parse.quote(s, safe="")),
    "JSON's": lambda s: "".join(f"\\u{ord(c):04X}" for c in s),
    "JSON's with slashes": lambda s: json.dumps(s).replace("/", "\\/"),
    "JSON's, twice": lambda s: json.dumps("".join(f"\\u{ord(c):04x}" for c in s)),
    "Python's": lambda s: "".join(f"\\x{ord(c):02x}" for c in s),
    "HTML's": lambda s: "".join(f"&#{ord(c)};" for c in s),
    "HTML's in hex": lambda s: "".join(f"&#x{ord(c):X};" for c in s),
    "HTML's by name": lambda s: html.escape(s).replace("+", "&plus;").replace("/", "&sol;"),
    "hex": lambda s: s.encode().hex(),
    "HEX": lambda s: s.encode().hex().upper(),
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "Basic u": lambda s: base64.b64encode(f"u:{s}".encode()).decode(),
    "Basic us": lambda s: base64.b64encode(f"us:{s}!".encode()).decode(),
    "base64 of URLs": lambda s: base64.urlsafe_b64encode(f"u:{s}".encode()).decode(),
    "base64 in a URL": lambda s: urllib.parse.quote(base64.b64encode(s.encode()), safe=""),
    "base64 in lines": lambda s: codecs.encode(s.encode() * 9, "base64").decode(),
    "lines": "\n".join,
    "zeros between": "\0".join,
    "invisible between": "\u200b".join,
    "colours between": "\x1b[31m".join,
}


@pytest.mark.parametrize("way", EACH)
def test_a_secret_is_hidden_however_it_is_written(way):
    found = scrub(f"no key {EACH[way](KEY)}, sorry", [KEY])
    assert found.startswith("no key ")
    assert found.endswith(", sorry")
    middle = found.removeprefix("no key ").removesuffix(", sorry")
    assert "***" in middle
    # At most digits of base64 that neighbours have a part in, quotation marks and padding.
    assert len(middle) <= 12, middle


def test_stretches_of_a_secret_are_hidden_and_hints_are_not():
    for stretch in (KEY[:12], KEY[5:16], KEY[-10:]):
        assert scrub(f"<{stretch}>", [KEY]) == "<***>"
    hint = "Incorrect API key provided: sk-Very/********=Z"  # as OpenAI writes it
    assert scrub(hint, [KEY]) == hint


def test_short_secrets():
    assert redact("EMPTY is empty", ["EMPTY"]) == "*** is empty"
    assert redact("Basic RU1QVFk=", ["EMPTY"]).startswith("Basic ***")
    assert redact("all of it", ["", "x", "it", "all"]) == "all of it"


def test_a_secret_with_escapes_in_it():
    key = "a%41b&c\\d-012345"
    for written in (key, urllib.parse.quote(key, safe=""), json.dumps(key)[1:-1]):
        assert redact(f"[{written}]", [key]) == "[***]"


def test_what_is_no_secret_stays_as_it_is():
    text = "50%25 &amp; 100% &nosuch; \\u00e9 \\d {'a': 'b'} sk-Very"
    assert scrub(text, [KEY]) == text
    assert redact("[two]\n\tlines", [KEY, "other-secret"], "<k>") == "[two]\n\tlines"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "alink"),
        ("\x9b31mred\x9d0;t\x9c", "red"),
        ("\x1bPq#0\x1b\\a\x1b(Bb\x1bcc\x1b", "abc"),
        ("\x1b]0;no end", "]0;no end"),
        ("a\r\nerror: b\tc\vd\x85e\u2028f\u2029g", "a  error: b c d e f g"),
        ("a\x00\x07\x08\x7f\x80b", "ab"),
        ("\u202egpj.exe\u2066\u200f\ufeff\u200b", "gpj.exe"),
        ("half \ud83d\udc80", "half "),
        ("caf\u00e9 \u732b \U0001f408", "caf\u00e9 \u732b \U0001f408"),
    ],
)
def test_what_a_terminal_would_obey(text, shown):
    assert plain(text) == shown


def test_lines_end(capsys):
    say("a" * 10**6)
    printed = capsys.readouterr().out
    assert len(printed) == LONGEST + 1
    assert printed.endswith("a...\n")
    assert scrub("abcdef", longest=5) == "ab..."


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://x.example/v1", "https://x.example/v1"),
        ("https://x.example/v1?api_key=a#b", "https://x.example/v1?***"),
        ("https://x.example/v1#a?b", "https://x.example/v1#***"),
        ("https://me:p/a?s#s@x.example/v1?k=v", "https://***@x.example/v1?***"),
        ("me:pass@x.example", "***@x.example"),
        ("/v1?\nkey", "/v1?***"),
        ("https://x.example:8000/v1", "https://x.example:8000/v1"),
        ("https://me:pass/v1", "https://me:***/v1"),
        ("me:pass", "me:***"),
    ],
)
def test_addresses(url, shown):
    assert redact_address(url) == shown
