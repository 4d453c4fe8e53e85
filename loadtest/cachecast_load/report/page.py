"""The report's style sheet and its one script; nothing is loaded from anywhere.

The five series colours stay apart, by 18 units of CIELAB and more, for people who do not see red
or green (Machado's simulation of both), and have 3:1 or more against the card in light and dark.
"""

STYLE = """
:root { color-scheme: light dark;
  --bg: #f6f7f9; --card: #ffffff; --ink: #16202c; --soft: #5b6876; --rule: #e3e7ec; --grid: #edf0f3;
  --pass: #0f7b46; --pass-bg: #e3f5ea; --fail: #b3261e; --fail-bg: #fdeceb;
  --invalid: #8a5a00; --invalid-bg: #fff3d6;
  --c0: #1f5fd0; --c1: #e07b00; --c2: #9c1f4f; --c3: #0e9f8a; --c4: #6b4c9a; }
@media (prefers-color-scheme: dark) { :root {
  --bg: #0f141a; --card: #171e26; --ink: #e6ebf1; --soft: #94a1af; --rule: #28323d; --grid: #212a34;
  --pass: #5fd39a; --pass-bg: #12301f; --fail: #ff8f86; --fail-bg: #3a1715;
  --invalid: #ffcc66; --invalid-bg: #362a0e;
  --c0: #5b9dff; --c1: #ffb454; --c2: #f0609a; --c3: #7fe3cf; --c4: #c9b8ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 24px 60px; }
header { display: flex; gap: 20px; align-items: center; flex-wrap: wrap; margin-bottom: 22px; }
h1 { font-size: 24px; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 15px; margin: 0 0 10px; font-weight: 650; }
h2 small { font-weight: 400; color: var(--soft); font-size: 13px; margin-left: 6px; }
header p { margin: 3px 0 0; color: var(--soft); }
header p.says { color: var(--ink); }
.badge { font-size: 20px; font-weight: 750; letter-spacing: .04em; padding: 12px 20px;
  border-radius: 12px; }
.PASS { color: var(--pass); background: var(--pass-bg); }
.FAIL { color: var(--fail); background: var(--fail-bg); }
.INVALID, .RUNNING { color: var(--invalid); background: var(--invalid-bg); }
.reasons { border-radius: 12px; padding: 12px 18px; margin: 0 0 20px; }
.reasons ul { margin: 0; padding-left: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(136px, 1fr)); gap: 12px;
  margin-bottom: 16px; }
.tile, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; }
.tile { padding: 12px 16px; }
.tile b { display: block; font-size: 23px; font-weight: 680; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tile b small { white-space: nowrap; font-size: 13px; font-weight: 500; color: var(--soft);
  margin-left: 3px; }
.tile span { color: var(--soft); font-size: 13px; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr));
  gap: 16px; margin-bottom: 16px; }
.card { padding: 16px 18px; min-width: 0; position: relative; }
.wide { margin-bottom: 16px; }
.scroll { overflow-x: auto; }
.scroll + .scroll { margin-top: 18px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg text.unit { font-style: italic; }
svg text.mark { fill: var(--ink); font-size: 11px; paint-order: stroke; stroke: var(--card);
  stroke-width: 4px; stroke-linejoin: round; }
svg text.none { text-anchor: middle; font-size: 14px; }
.grid { stroke: var(--grid); } .axis { stroke: var(--rule); }
line.mark { stroke: var(--soft); stroke-dasharray: 3 3; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.dashed { stroke-dasharray: 5 4; }
.area { opacity: .13; stroke: none; }
.bar { fill: var(--c0); opacity: .85; } .bar:hover { opacity: 1; }
.line.s0 { stroke: var(--c0); } .line.s1 { stroke: var(--c1); } .line.s2 { stroke: var(--c2); }
.line.s3 { stroke: var(--c3); } .line.s4 { stroke: var(--c4); }
.area.s0, .dot.s0 { fill: var(--c0); } .area.s1, .dot.s1 { fill: var(--c1); }
.area.s2, .dot.s2 { fill: var(--c2); } .area.s3, .dot.s3 { fill: var(--c3); }
.area.s4, .dot.s4 { fill: var(--c4); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin-top: 6px; font-size: 13px;
  color: var(--soft); }
.key i { display: inline-block; width: 16px; height: 0; border-top: 2.5px solid; margin-right: 6px;
  vertical-align: middle; }
.key i.dashed { border-top-style: dashed; }
.k0 { color: var(--c0); } .k1 { color: var(--c1); } .k2 { color: var(--c2); }
.k3 { color: var(--c3); } .k4 { color: var(--c4); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; padding-right: 14px; }
td code, pre { font: 13px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
td.bad { color: var(--fail); font-weight: 650; }
.mark-pass, .mark-fail, .mark-undecided { font-weight: 650; }
.mark-pass { color: var(--pass); } .mark-fail { color: var(--fail); }
.mark-undecided { color: var(--invalid); }
.eg { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
details { margin-top: 4px; } summary { cursor: pointer; color: var(--soft); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 8px 0 0; }
.note { color: var(--soft); margin: 8px 0 0; font-size: 13.5px; }
.tip { position: absolute; pointer-events: none; background: var(--ink); color: var(--bg);
  border-radius: 8px; padding: 6px 10px; font-size: 12.5px; line-height: 1.4; white-space: nowrap;
  z-index: 2; font-variant-numeric: tabular-nums; }
footer { color: var(--soft); font-size: 13px; margin-top: 20px; }
@media (max-width: 620px) { main { padding: 16px 12px 40px; }
  svg text { font-size: 21px; } svg text.mark { font-size: 19px; }
  svg text.minor { display: none; } .line { stroke-width: 3; }
  .many table { min-width: 560px; } }
@media print { body { background: #fff; } .card, .tile { break-inside: avoid; } }
"""

SCRIPT = """
document.querySelectorAll('svg[data-chart]').forEach(function (svg) {
  var data = JSON.parse(svg.dataset.chart), card = svg.closest('.card'), tip = null;
  var left = %(left)d, right = %(right)d, width = %(width)d;
  function leave() { if (tip) { tip.remove(); tip = null; } }
  svg.addEventListener('pointerleave', leave);
  svg.addEventListener('pointermove', function (event) {
    var box = svg.getBoundingClientRect();
    var part = ((event.clientX - box.left) / box.width * width - left) / (width - left - right);
    var x = data.x[0] + part * (data.x[1] - data.x[0]), rows = [], at = null;
    data.s.forEach(function (series) {
      var best = null;
      series[2].forEach(function (point) {
        if (!best || Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
      });
      if (!best) return;
      at = best[0];
      rows.push(series[0] + ': ' + best[1].toLocaleString() + ' ' + data.u);
    });
    if (at === null) return;
    if (!tip) { tip = document.createElement('div'); tip.className = 'tip'; card.appendChild(tip); }
    tip.textContent = '';
    [at.toLocaleString() + ' ' + data.xu].concat(rows).forEach(function (text) {
      var line = document.createElement('div'); line.textContent = text; tip.appendChild(line);
    });
    var frame = card.getBoundingClientRect();
    var offset = event.clientX - frame.left;
    var flip = offset > frame.width - tip.offsetWidth - 24;
    tip.style.left = (flip ? offset - tip.offsetWidth - 12 : offset + 12) + 'px';
    tip.style.top = (event.clientY - frame.top - 10) + 'px';
  });
});
"""
