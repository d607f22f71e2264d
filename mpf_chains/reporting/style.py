"""The styles of the HTML report: light, dark and printed, from 320 pixels on; every pair of colours passes WCAG AA."""

from __future__ import annotations

LIGHT = """
  color-scheme: light;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #535c66; --rule: #d5dae0; --link: #0b57d0;
  --target: #1b1f24; --before: #a8430c; --after: #0b57d0; --plain: #535c66;
  --fill-after: #5289dd; --fill-plain: #7f8b98;
  --floor: #e3e7ec; --good: #12652e; --good-back: #e9f5ed; --bad: #a3221b; --bad-back: #fcedeb;
  --open: #6b4b00; --open-back: #fbf3df; --note: #2c4a7c; --note-back: #eaf0f9;
"""
DARK = """
  color-scheme: dark;
  --page: #101316; --card: #191d22; --ink: #e8eaed; --soft: #aab3bd; --rule: #383f47; --link: #8ab4f8;
  --target: #e8eaed; --before: #f5a26a; --after: #8ab4f8; --plain: #aab3bd;
  --fill-after: #3f6fb5; --fill-plain: #5b6672;
  --floor: #2c3239; --good: #86d69b; --good-back: #15281b; --bad: #ffa299; --bad-back: #331917;
  --open: #ecc76a; --open-back: #2d2612; --note: #a9c4f2; --note-back: #18243a;
"""
STYLE = f"""
:root {{{LIGHT}}}
@media screen and (prefers-color-scheme: dark) {{ :root {{{DARK}}} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif;
  overflow-wrap: anywhere; }}
header, main, footer {{ max-width: 62rem; margin: 0 auto; padding: 0 1rem; }}
header {{ padding-top: 2.2rem; }}
h1 {{ font-size: clamp(1.55rem, 4.5vw, 2.1rem); line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }}
h2 {{ font-size: 1.3rem; line-height: 1.3; margin: 0 0 .8rem; }}
h3 {{ font-size: 1.06rem; margin: 1.8rem 0 .5rem; }}
h4 {{ font-size: 1rem; margin: 1.4rem 0 .4rem; }}
p, ul {{ margin: 0 0 .9rem; }}
li {{ margin-bottom: .3rem; }}
a {{ color: var(--link); }}
.subtitle, footer, .soft {{ color: var(--soft); }}
.skip {{ position: absolute; left: 1rem; top: -6rem; padding: .5rem 1rem; background: var(--card); }}
.skip:focus {{ top: .5rem; }}
:focus-visible {{ outline: 3px solid var(--link); outline-offset: 2px; }}
nav ul {{ list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; padding: 0; margin: 1rem 0; }}
nav li {{ margin: 0; }} nav a {{ display: inline-block; padding: .15rem 0; }}
section.part > :last-child {{ margin-bottom: 0; }}
section.part {{ background: var(--card); border: 1px solid var(--rule); border-radius: .6rem; padding: 1.3rem;
  margin: 0 0 1.2rem; }}
.verdict {{ border-left: .35rem solid; border-radius: .3rem; padding: .75rem 1rem; margin: 0 0 .9rem; }}
.verdict p {{ margin: 0; color: var(--ink); }}
.verdict .title {{ font-weight: 650; margin-bottom: .25rem; }}
.good {{ color: var(--good); background: var(--good-back); }} .good .title {{ color: var(--good); }}
.bad {{ color: var(--bad); background: var(--bad-back); }} .bad .title {{ color: var(--bad); }}
.open {{ color: var(--open); background: var(--open-back); }} .open .title {{ color: var(--open); }}
.note {{ color: var(--note); background: var(--note-back); }} .note .title {{ color: var(--note); }}
.scroll {{ overflow-x: auto; margin: 0 0 1.1rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }}
caption {{ text-align: left; color: var(--soft); padding-bottom: .45rem; }}
caption span {{ position: sticky; left: 0; display: inline-block; max-width: min(100%, calc(100vw - 4rem)); }}
th, td {{ text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--rule);
  overflow-wrap: normal; }}
thead th {{ color: var(--soft); font-weight: 600; vertical-align: bottom; border-bottom-width: 2px; }}
tbody th {{ font-weight: 600; min-width: 7.5rem; max-width: 24rem; overflow-wrap: anywhere; }}
td.text {{ min-width: 9rem; max-width: 34rem; overflow-wrap: anywhere; }}
td.number {{ white-space: nowrap; }}
td .interval {{ color: var(--soft); white-space: nowrap; display: inline-block; }}
.dense .interval {{ display: block; }}
figure {{ margin: 1.1rem 0 1.3rem; }}
figcaption {{ color: var(--soft); font-size: .93rem; margin-bottom: .5rem; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem 2rem; }}
.charts > div {{ min-width: 0; max-width: 36rem; container-type: inline-size; }}
@container (max-width: 23rem) {{ svg .range {{ display: none; }} }}
.charts .name {{ font-weight: 600; font-size: .95rem; margin: 0 0 .3rem; }}
.legend {{ list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; padding: 0; margin: .4rem 0;
  font-size: .9rem; color: var(--soft); }}
.legend svg {{ vertical-align: middle; margin-right: .45rem; }}
svg {{ display: block; overflow: hidden; }} .legend svg {{ display: inline-block; }}
svg text {{ font: 12px system-ui, sans-serif; fill: var(--soft); }}
svg .label, svg .value {{ font-size: 13px; fill: var(--ink); }}
svg .value {{ font-variant-numeric: tabular-nums; }}
svg .grid {{ stroke: var(--rule); }} svg .axis {{ stroke: var(--soft); }}
svg .line {{ fill: none; stroke-width: 2.2; vector-effect: non-scaling-stroke; stroke-linejoin: round; }}
svg .line.target {{ stroke-dasharray: 7 4; }} svg .line.before {{ stroke-dasharray: 2.5 2.5; }}
svg .target {{ stroke: var(--target); }} svg .before {{ stroke: var(--before); }}
svg .after {{ stroke: var(--after); }} svg .plain {{ stroke: var(--plain); }}
svg .mean {{ stroke-width: 3; }} svg .whisker {{ stroke-width: 1.6; }}
svg .dot {{ fill: var(--card); stroke-width: 2.2; }} svg .dot.after {{ fill: var(--after); }}
svg .dot.target {{ fill: var(--target); }} svg .dot.plain {{ fill: var(--plain); stroke: none; }}
svg .bar {{ stroke: none; fill: var(--fill-after); }} svg .bar.plain {{ fill: var(--fill-plain); }}
svg .whisker {{ stroke: var(--ink); }} svg .whisker.before {{ stroke: var(--before); }}
svg .whisker.after {{ stroke: var(--after); }} svg .whisker.target {{ stroke: var(--target); }}
svg .floor {{ fill: var(--floor); }} svg .floor-mean {{ stroke: var(--soft); stroke-dasharray: 2 3; }}
svg .ideal {{ stroke: var(--target); stroke-width: 1.6; stroke-dasharray: 7 4; }}
blockquote {{ margin: 0; padding: .55rem .9rem; background: var(--page); border-radius: .3rem; white-space: pre-wrap;
  overflow: auto; max-height: 22rem; }}
.quote {{ margin: 0 0 .8rem; }} .quote figcaption {{ margin-bottom: .2rem; }} .quote b {{ color: var(--ink); }}
details {{ margin: .3rem 0 1rem; }} details details {{ margin-left: .8rem; }}
summary {{ cursor: pointer; color: var(--link); padding: .25rem 0; }}
details[open] > summary {{ margin-bottom: .6rem; }}
footer {{ padding: .5rem 1rem 2.5rem; font-size: .9rem; }}
@media (max-width: 30rem) {{ section.part {{ padding: 1rem .85rem; }} }}
@media print {{
  body {{ background: none; font-size: 10pt; }}
  header, main, footer {{ max-width: none; padding-left: 0; padding-right: 0; }}
  nav, .skip {{ display: none; }}
  section.part {{ border: 0; padding: 0; margin-bottom: 1.5rem; }}
  h2, h3, h4, figcaption, caption, summary, thead {{ break-after: avoid; }}
  .verdict, .charts > div, .quote, tr {{ break-inside: avoid; }}
  .scroll, blockquote {{ overflow: visible; max-height: none; }}
  td.number {{ white-space: normal; }} table {{ font-size: 8.5pt; }} th, td {{ padding-right: .5rem; }}
  .verdict, blockquote, svg {{ -webkit-print-color-adjust: exact; print-color-adjust: exact; }}
  details::details-content {{ content-visibility: visible; block-size: auto; }}
  details:not([open]) > :not(summary) {{ display: block; }}
}}
""".strip()
