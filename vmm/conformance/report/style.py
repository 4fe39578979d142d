"""How the page looks, and the one thing on it that is done by a script: the filter box."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --good: #2e7d32; --bad: #c62828; --odd: #8f5600;
  --alarm: #c62828; --line: color-mix(in srgb, currentColor 14%, transparent);
  --soft: color-mix(in srgb, currentColor 65%, transparent); --paper: Canvas }
@media (prefers-color-scheme: dark) {
  :root { --good: #81c784; --bad: #ff8a80; --odd: #ffb74d }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 110rem; margin: 2.5rem auto;
  padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem }
h3 { font-size: 1rem; margin: 2rem 0 .2rem; font-family: ui-monospace, monospace }
p, li { max-width: 62rem } .soft { color: var(--soft) } ul { padding-left: 1.2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .92rem }
th, td { padding: .22rem .55rem; border-bottom: 1px solid var(--line); text-align: center }
thead th { position: sticky; top: 0; background: var(--paper); font-weight: 600 }
th[scope=row] { text-align: left; font-weight: 400; min-width: 16rem; max-width: 34rem }
th[scope=row] b { font-family: ui-monospace, monospace; margin-right: .5rem }
td a { text-decoration: none; display: block; border-radius: .3rem; font-weight: 600 }
.first { border-left: 2px solid var(--line) } .changed { box-shadow: inset 3px 0 var(--odd) }
.PASS { color: var(--good) } .SKIP { color: var(--soft) }
.FAIL, .TIMEOUT, .ERROR, .UNSTEADY { color: #fff; background: var(--alarm) }
.A { color: inherit } .other { color: var(--odd) } code, pre { font-size: .85rem }
pre { overflow-x: auto; background: var(--line); padding: .6rem .8rem; border-radius: .4rem }
:target { outline: 2px solid var(--odd); outline-offset: 4px; border-radius: .2rem }
summary { cursor: pointer } .record { margin: .5rem 0 .5rem 1rem }
.skip { position: absolute; left: -99rem } .skip:focus { left: 1rem; background: var(--paper) }
:focus-visible { outline: 2px solid currentColor; outline-offset: 2px }
caption { text-align: left; padding: .2rem 0; color: var(--soft) }
.filter { position: sticky; top: 0; z-index: 1; background: var(--paper); padding: .4rem 0 }
.filter input { font: inherit; width: min(24rem, 60vw) } .shown { color: var(--bad) }
.absent { color: var(--good) } svg { vertical-align: middle; margin-right: .5rem }
svg .shown, svg .changed { fill: var(--bad) } svg .absent { fill: var(--good) }
svg .unknown { fill: var(--line) } svg .seen { fill: var(--soft) } svg { forced-color-adjust: none }
svg .curve { fill: none; stroke: var(--odd); stroke-width: 1.5 }
svg .bar { fill: var(--odd) } svg .axis { stroke: var(--soft) }
svg .tick { fill: var(--soft); font-size: 10px; text-anchor: middle }
figure svg { max-width: 100%; height: auto }
figure { margin: .4rem 0 } figcaption { color: var(--soft); font-size: .85rem }
.line { font-family: ui-monospace, monospace; font-size: .85rem; margin: .15rem 0 }
@media print {
  .filter, .skip, .index { display: none } thead th { position: static } .wide { overflow: visible }
  body { max-width: none; margin: 0; font-size: 10pt } tr, .record { break-inside: avoid }
  details:not(.rest)::details-content { content-visibility: visible; block-size: auto }
}
"""
"""For screens, light or dark as the reader prefers, and for paper."""

SCRIPT = """
const box = document.getElementById("filter"), said = document.getElementById("found");
const all = [...document.querySelectorAll("tbody tr, main section, .line")];
box.closest(".filter").hidden = false;
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let number = 0;
  for (const each of all) {
    const text = each.textContent.toLowerCase();
    each.hidden = !words.every(word => text.includes(word));
    number += !each.hidden;
  }
  for (const fold of document.querySelectorAll("main details.rest")) fold.open = words.length > 0;
  said.textContent = words.length ? `${number} of ${all.length} rows and records` : "";
});
"""
"""Shows the box, and hides rows and records without the words in it."""
