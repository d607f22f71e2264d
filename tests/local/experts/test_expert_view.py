"""What views show of an explanation, and what they must not let through."""

from __future__ import annotations

import json
import math
import unicodedata
from html.parser import HTMLParser
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from mpf_chains.errors import InvalidInput, MissingExtra
from mpf_chains.local.experts.explanation.readable import readable, spelled, whole_characters
from mpf_chains.local.experts.explanation.records import ExplainedToken, Moved
from mpf_chains.local.experts.explanation.view import ExplanationView

HOSTILE = "<script>alert(1)</script><img src=//x onerror='x()'>\" onfocus=x \x1b[31m\u202e"


def token(text: str, before: float, after: float, *others: tuple[str, float, float], **parts: float) -> ExplainedToken:
    parts = parts or {"gender": math.log(after / before)}
    return ExplainedToken(1, text, before, after, parts, tuple(Moved(2 + i, *each) for i, each in enumerate(others)))


ANSWER = (
    token("The nurse", 0.5, 0.51),
    token(" she", 0.125, 0.5, (" he", 0.75, 0.25), gender=math.log(4) + 0.2, race=-0.2),
    token(" left", 0.5, 0.3),
    token("\n", 0.5, 0.02),
    token(r" \xe2\x82", 0.3, 0.3),
    token(r"\xac", 0.9, 0.9),
)


def printed(view: ExplanationView, encoding: str = "utf-8", **options: Any) -> str:
    from rich.console import Console

    class File(StringIO):
        @property
        def encoding(self) -> str:  # type: ignore[override]
            return encoding

    file = File()
    Console(file=file, width=100, **options).print(view)
    return file.getvalue()


numbers = st.floats(0, 1)
moved = st.builds(Moved, st.integers(0, 2**17), st.text(), numbers, numbers)
parts = st.dictionaries(st.text(), st.floats(allow_infinity=False), max_size=3)
records = st.builds(
    ExplainedToken, st.integers(0, 2**17), st.text(), numbers, numbers, parts, st.lists(moved, max_size=3).map(tuple)
)


@given(st.lists(records, max_size=4))
def test_a_record_survives_json_and_every_view_takes_every_record(tokens: list[ExplainedToken]) -> None:
    plain = json.loads(json.dumps([each.as_dict() for each in tokens], allow_nan=False))
    back = [ExplainedToken.from_dict(each) for each in plain]
    assert repr(back) == repr(tokens)  # NaN is not equal to itself
    message = AIMessage("", response_metadata={"experts": {"alphas": {"gender": 3.0}, "tokens": plain}})
    views = [ExplanationView(each).page() for each in (tokens, plain)]
    assert views[0] == views[1]
    assert [each.record for each in ExplanationView(message).tokens] == back or "nan" in repr(back)


class Page(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_texts_names_and_titles_are_escaped_everywhere() -> None:
    hostile = token(HOSTILE, 0.2, 0.4, (HOSTILE, 0.1, 0.3), **{HOSTILE: 0.5, "b": 0.1})
    harmless = token("a", 0.2, 0.4, ("b", 0.1, 0.3), a=0.5, b=0.1)

    def page(record: ExplainedToken, name: str) -> str:
        return ExplanationView([record], pair=name, alphas={name: 1.0}).page(title=name)

    found, plain = page(hostile, HOSTILE), page(harmless, "a")
    assert Page(found).elements == Page(plain).elements
    assert not {"script", "img", "a", "iframe", "form"} & {tag for tag, _ in Page(found).elements}
    assert "\x1b" not in found and "\u202e" not in found
    assert "url(" not in plain and "//" not in plain


def test_tokens_are_marked_by_how_far_they_moved() -> None:
    view = ExplanationView(ANSWER, alphas={"gender": 2.0})
    assert [each.level for each in view.tokens] == [0, 2, -1, -3, 0, 0]
    assert [each.text for each in view.tokens] == ["The nurse", " she", " left", "\n", " ", "€"]
    assert [place for place, _ in view.strongest(2)] == [1, 3]
    assert "3 of 6 tokens" in view.summary() and "gender (α = 2) " in view.summary() and "race -0.20" in view.summary()
    assert [each.level for each in ExplanationView(ANSWER, pair="race").tokens] == [0, -1, 0, 0, 0, 0]
    kinds = [attributes.get("class") for tag, attributes in Page(view.html()).elements if tag == "span"]
    assert [kind for kind in kinds if kind and kind.startswith("t")] == ["t", "t more2", "t less1", "t less3", "t", "t"]
    for words in ("␣she", "0.125 → 0.500", "×4.00", "gender +1.59, race -0.20", "0.750 → 0.250", "⟨E2 82⟩"):
        assert words in view.html()
    assert view._repr_html_() == view.html() and "<html" not in view.html() and "<html" in view.page()


def test_a_terminal_shows_marks_with_and_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    colours: dict[str, Any] = {"force_terminal": True, "color_system": "truecolor"}
    view = ExplanationView(ANSWER)
    piped = printed(view)
    assert "The nurse she▲▲ left▼↵▼▼▼\n €\n" in piped and "\x1b" not in piped
    assert "0.125 → 0.500" in piped and "×4.00 ▲▲" in piped and "␣he 0.750 → 0.250" in piped
    assert "48;2;163;196;243m she▲▲\x1b[0m" in printed(view, **colours)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;2" not in printed(view, **colours)
    assert "\x1b" not in printed(ExplanationView([token(HOSTILE, 0.2, 0.4)]))
    plain = printed(view, "ascii")
    assert plain.isascii() and "The nurse she++ left-\\n---" in plain and "0.125 -> 0.500" in plain


def test_without_rich_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    with pytest.raises(MissingExtra, match=r"mpf-chains\[cli\]"):
        ExplanationView(ANSWER).show()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (AIMessage("no experts"), "explain=True"),
        (AIMessage("", response_metadata={"experts": {"alphas": {}}}), "explain=True"),
        ("text", "neither a message nor a list"),
        ([{"token": 1, "text": "a"}], "KeyError: 'contributions'"),
        ([{**ANSWER[0].as_dict(), "after": 2.0}], "'after' is 2.0"),
        ([{**ANSWER[0].as_dict(), "alternatives": [3]}], "no record of an explained token"),
    ],
)
def test_what_is_no_explanation_is_refused(source: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        ExplanationView(source)


def test_an_unknown_pair_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'gender', 'race'"):
        ExplanationView(ANSWER, pair="age")


@given(st.text(), st.randoms(use_true_random=False))
def test_characters_spread_over_tokens_are_put_together(text: str, random: Any) -> None:
    raw = text.encode(errors="replace")
    cuts = sorted(random.sample(range(len(raw) + 1), min(3, len(raw) + 1)))
    pieces = [raw[a:b].decode(errors="backslashreplace") for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert "".join(whole_characters(pieces)) == raw.decode()


@given(st.text())
def test_nothing_hidden_is_left_in_a_text(text: str) -> None:
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert not hidden & {unicodedata.category(c) for c in readable(text) if c not in "\n\u200c\u200d"}
    assert not (hidden | {"Zs"}) & {unicodedata.category(c) for c in spelled(text) if c not in "\u200c\u200d"}
