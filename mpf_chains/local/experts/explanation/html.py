"""An explanation as HTML that asks for nothing and runs nothing; light, dark and printed."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Final

from mpf_chains.local.experts.explanation.readable import readable, spelled
from mpf_chains.local.experts.explanation.view import FACTORS, factor, nats, probability

if TYPE_CHECKING:
    from mpf_chains.local.experts.explanation.records import ExplainedToken, Moved
    from mpf_chains.local.experts.explanation.view import ExplanationView, ShownToken

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_LIGHT: Final = """
  color-scheme: light; --card: #ffffff; --ink: #1b1f24; --soft: #535c66; --rule: #d5dae0; --link: #0b57d0;
  --more1: #e4eefc; --more2: #bad4f7; --more3: #8fb8f0; --less1: #fcecdc; --less2: #f6cfa8; --less3: #efb177;
  --more: #0b57d0; --less: #a8430c;
"""
_DARK: Final = """
  color-scheme: dark; --card: #191d22; --ink: #e8eaed; --soft: #aab3bd; --rule: #383f47; --link: #8ab4f8;
  --more1: #1c2b42; --more2: #23426f; --more3: #2b589c; --less1: #38271a; --less2: #5a3716; --less3: #7d4a12;
  --more: #8ab4f8; --less: #f5a26a;
"""
_STYLE: Final = f"""
.mpf-view {{ {_LIGHT} background: var(--card); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif;
  border: 1px solid var(--rule); border-radius: .6rem; padding: 1rem 1.2rem; position: relative;
  overflow-wrap: anywhere; }}
@media screen and (prefers-color-scheme: dark) {{ .mpf-view {{ {_DARK} }} }}
.mpf-view * {{ box-sizing: border-box; }}
.mpf-view p {{ margin: 0 0 .8rem; color: var(--soft); font-size: .93rem; }}
.mpf-view .answer {{ white-space: pre-wrap; line-height: 2; margin: 0 0 .8rem; font-size: 1.06rem; }}
.mpf-view .t {{ border-bottom: 2px solid transparent; padding: .1rem 0; border-radius: .15rem .15rem 0 0; }}
.mpf-view .t:hover, .mpf-view .t:focus {{ outline: 2px solid var(--link); }}
.mpf-view [class*=more] {{ border-bottom-style: solid; border-bottom-color: var(--more); }}
.mpf-view [class*=less] {{ border-bottom-style: dotted; border-bottom-color: var(--less); }}
.mpf-view .more1 {{ background: var(--more1); }} .mpf-view .less1 {{ background: var(--less1); }}
.mpf-view .more2 {{ background: var(--more2); border-bottom-width: 3px; }}
.mpf-view .less2 {{ background: var(--less2); border-bottom-width: 3px; }}
.mpf-view .more3 {{ background: var(--more3); border-bottom-width: 5px; }}
.mpf-view .less3 {{ background: var(--less3); border-bottom-width: 5px; }}
.mpf-view .about {{ display: none; position: absolute; left: 1rem; right: 1rem; z-index: 1; pointer-events: none;
  white-space: normal; background: var(--card); border: 1px solid var(--soft); border-radius: .4rem;
  padding: .5rem .8rem; font-size: .9rem; line-height: 1.5; margin-top: .3rem; }}
.mpf-view .t:hover > .about, .mpf-view .t:focus > .about {{ display: block; }}
.mpf-view .about span {{ display: block; }}
.mpf-view summary {{ cursor: pointer; color: var(--link); padding: .25rem 0; }}
.mpf-view .scroll {{ overflow-x: auto; }}
.mpf-view table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem;
  background: none; color: inherit; }}
.mpf-view caption {{ text-align: left; color: var(--soft); padding-bottom: .4rem; }}
.mpf-view tr, .mpf-view th, .mpf-view td {{ background: none; color: inherit; }}
.mpf-view th, .mpf-view td {{ text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0;
  border-bottom: 1px solid var(--rule); white-space: nowrap; }}
.mpf-view td:last-child {{ white-space: normal; min-width: 14rem; }}
.mpf-view thead th {{ color: var(--soft); border-bottom-width: 2px; }}
.mpf-view :focus-visible {{ outline: 3px solid var(--link); outline-offset: 2px; }}
@media print {{
  .mpf-view {{ border: 0; padding: 0; -webkit-print-color-adjust: exact; print-color-adjust: exact; }}
  .mpf-view .scroll {{ overflow: visible; }}
  .mpf-view table {{ font-size: 8.5pt; }} .mpf-view tr {{ break-inside: avoid; }}
  .mpf-view th, .mpf-view td {{ white-space: normal; padding-right: .5rem; }}
  .mpf-view details::details-content {{ content-visibility: visible; block-size: auto; }}
  .mpf-view details:not([open]) > :not(summary) {{ display: block; }}
}}
""".strip()
_PAGE_STYLE: Final = """
:root { color-scheme: light; }
body { background: #f6f7f9; color: #1b1f24; font: 1rem/1.55 system-ui, sans-serif; margin: 0; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; }
  body { background: #101316; color: #e8eaed; }
}
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 8rem; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.4rem, 4vw, 1.9rem); line-height: 1.2; margin: 0 0 1rem; }
@media print { body { background: none; font-size: 10pt; } main { max-width: none; padding: 0; } }
""".strip()
_FACTORS: Final = ", ".join(f"{each:g}" for each in FACTORS)
_LEGEND: Final = (
    "Blue over a line: more probable with the experts. Orange over dots: less probable. The stronger the colour and "
    f"the thicker the line, the more: by a factor of {_FACTORS} or more. Point at a word, or go to it with Tab, for "
    "its figures."
)


def fragment(view: ExplanationView) -> str:
    """The view as an element with its own style."""
    by = f" Coloured by the part of {readable(view.pair)}." if view.pair is not None else ""
    answer = "".join(_token(token) for token in view.tokens)
    return (
        f'<div class="mpf-view" lang="en"><style>\n{_STYLE}\n</style>\n<p>{escape(view.summary())}{escape(by)}</p>\n'
        f'<div class="answer" dir="auto" lang="">{answer}</div>\n<p>{escape(_LEGEND)}</p>\n'
        f"<details><summary>Every token as a table</summary>{_table(view)}</details></div>\n"
    )


def page(view: ExplanationView, title: str) -> str:
    """The view as a page of its own."""
    heading = escape(" ".join(readable(title).split()))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">\n'
        f'<title>{heading}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{_PAGE_STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{heading}</h1>\n{fragment(view)}</main>\n</body>\n</html>\n"
    )


def _token(token: ShownToken) -> str:
    kind = f" {'more' if token.level > 0 else 'less'}{abs(token.level)}" if token.level else ""
    focus = ' tabindex="0"' if token.level else ""  # the table has the others
    about = "".join(f"<span>{escape(line)}</span>" for line in _about(token))
    text = escape(token.text).replace("\n", "↵\n")
    return f'<span class="t{kind}"{focus}>{text}<span class="about" lang="en" dir="ltr">{about}</span></span>'


def _about(token: ShownToken) -> Iterator[str]:
    record = token.record
    yield f"{token.name}: {_before_after(record)} ({factor(record.change)}, {nats(record.change)} nats)"
    if len(record.contributions) > 1:
        parts = ", ".join(f"{spelled(name)} {nats(part)}" for name, part in record.contributions.items())
        yield f"of which {parts} nats"
    if record.alternatives:
        yield f"most changed here: {_alternatives(record)}"


def _table(view: ExplanationView) -> str:
    names = [
        "Token",
        "Before",
        "After",
        "Change",
        *(f"{spelled(name)}, nats" for name in view.pairs),
        "Most changed here",
    ]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ["Place", *names])
    rows = "".join(
        f'<tr><td>{place}</td><th scope="row"><bdi>{escape(token.name)}</bdi></th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(view, token))
        + "</tr>"
        for place, token in enumerate(view.tokens, 1)
    )
    caption = "Probability of each token by the base model and with the experts, and what each pair did to ln p"
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="Every token"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cells(view: ExplanationView, token: ShownToken) -> Iterator[str]:
    record = token.record
    yield probability(record.before)
    yield probability(record.after)
    yield f"{factor(record.change)} {'▲' * token.level or '▼' * -token.level}".strip()
    for name in view.pairs:
        yield nats(record.contributions.get(name))
    yield _alternatives(record)


def _alternatives(record: ExplainedToken) -> str:
    return ", ".join(f"\u2068{spelled(each.text)}\u2069 {_before_after(each)}" for each in record.alternatives)


def _before_after(moved: Moved) -> str:
    return f"{probability(moved.before)} → {probability(moved.after)}"
