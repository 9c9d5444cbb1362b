"""How a report looks: by day, by night, on a telephone and on paper. The hues are Okabe and Ito's."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --muted: #57606a; --rule: #d5dae0; --tint: #f4f6f8;
  --link: #0072b2; --cold: #0072b2; --second: #e69f00; --edge: #8a5f00; --rate: #009e73; --lanes: #d55e00; --box: #c9d1d9; --mauve: #cc79a7; --sky: #56b4e9; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ec; --muted: #a2abb5; --rule: #363d45; --tint: #1d2227;
  --link: #56b4e9; --cold: #56b4e9; --second: #e69f00; --edge: #f0c060; --rate: #2bbd92; --lanes: #e8782a; --box: #49525c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 8px 0 12px; }
h2 { font-size: 20px; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 16px; margin: 26px 0 8px; }
p:has(+ figure), p:has(+ .table) { break-after: avoid; }
h2, h3 { break-after: avoid; overflow-wrap: anywhere; line-height: 1.3; }
p, li { max-width: 88ch; overflow-wrap: anywhere; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.88em; }
pre { background: var(--tint); padding: 10px 12px; overflow-x: auto; border-radius: 4px; }
pre.lines { max-height: 70vh; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; }
pre.lines span:target { background: var(--second); color: #000; }
figure { margin: 10px 0 12px; break-inside: avoid; }
figcaption { color: var(--muted); font-size: 13px; margin-top: 4px; max-width: 88ch; }
.table { overflow-x: auto; margin: 10px 0 14px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 9px 3px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
th.n, td.n { text-align: right; white-space: nowrap; }
td.runs { font-size: 11px; min-width: 9em; }
td code { white-space: nowrap; }
#in-short td:first-child { min-width: 13em; }
#in-short code, #machine td, #storages td, #storages code, #left-out td { white-space: normal; overflow-wrap: anywhere; }
svg.chart { display: block; max-width: 100%; height: auto; font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg.narrow { display: none; }
svg text { fill: var(--ink); }
svg text.muted { fill: var(--muted); }
svg .head { font-weight: 600; }
svg .says { font-variant-numeric: tabular-nums; }
svg a { text-decoration: none; }
.halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.paper { fill: var(--paper); }
.grid { stroke: var(--rule); }
.base { stroke: var(--muted); }
.whisker { stroke: var(--ink); stroke-width: 1.3; }
.whisker-edge { stroke: var(--paper); stroke-width: 4; }
.cold-bar { fill: var(--cold); }
.second-bar { stroke: var(--edge); stroke-width: 1; }
.second-hatch { stroke: var(--second); stroke-width: 5; }
.cold-dots, .second-dots { fill: none; stroke-linecap: round; stroke-width: 4.5; stroke-opacity: 0.75; }
.cold-dots { stroke: var(--cold); }
.second-dots { stroke: var(--edge); }
.quartiles { fill: var(--box); }
.median { stroke: var(--ink); stroke-width: 2; }
.phase { fill: var(--box); fill-opacity: 0.35; }
.rate-line, .lanes-line { fill: none; stroke-width: 2; }
.rate-line { stroke: var(--rate); }
.lanes-line { stroke: var(--lanes); }
.rate-area, .lanes-area { fill-opacity: 0.16; }
.rate-area { fill: var(--rate); }
.lanes-area { fill: var(--lanes); }
.line-0, .line-1, .line-2, .line-3, .line-4, .line-5, .across, .leader { fill: none; stroke-width: 2; }
.line-0 { stroke: var(--cold); }
.line-1 { stroke: var(--lanes); stroke-dasharray: 7 3; }
.line-2 { stroke: var(--rate); stroke-dasharray: 2 2.5; }
.line-3 { stroke: var(--mauve); stroke-dasharray: 9 3 2 3; }
.line-4 { stroke: var(--edge); stroke-dasharray: 4 2; }
.line-5 { stroke: var(--sky); stroke-dasharray: 12 4; }
.mark-0 { fill: var(--cold); }
.mark-1 { fill: var(--lanes); }
.mark-2 { fill: var(--rate); }
.mark-3 { fill: var(--mauve); }
.mark-4 { fill: var(--edge); }
.mark-5 { fill: var(--sky); }
.across { stroke: var(--ink); stroke-dasharray: 1 3; stroke-linecap: round; }
.leader { stroke: var(--rule); stroke-width: 1; }
@media screen and (max-width: 720px) {
  main { padding: 12px 14px 48px; }
  td.runs { white-space: nowrap; }
  #in-short td:first-child { min-width: 7em; }
  #in-short .n { white-space: normal; min-width: 5em; }
  .table { background: linear-gradient(var(--paper), var(--paper)) right / 28px 100% no-repeat local,
    linear-gradient(to left, var(--box), transparent) right / 14px 100% no-repeat scroll; }
  svg.wide { display: none; }
  svg.narrow { display: block; }
}
@media print {
  @page { margin: 13mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  a { color: inherit; text-decoration: none; }
  .table { overflow: visible; }
  table { font-size: 6.8pt; }
  th, td { padding-right: 5px; }
  #in-short th, #in-short td { padding-right: 10px; white-space: normal; }
  [id^="within-"] code, [id^="files-"] code { white-space: normal; overflow-wrap: anywhere; }
  figcaption { font-size: 8.5pt; }
  td.runs { font-size: 6pt; min-width: 5em; }
  tr { break-inside: avoid; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  details { display: none; }
}
"""
"""The style sheet of the page."""
