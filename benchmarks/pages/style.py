"""Style and script of the page: light, dark and print; tables that sort; nothing from elsewhere."""

from __future__ import annotations

from voco.figures.style import DARK, LIGHT


def _variables(colors: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colors.items())


CSS = (
    ":root{color-scheme:light dark;" + _variables(LIGHT) + "--warn:#8a3b00;--warn-back:#fff1e2}"
    "@media (prefers-color-scheme:dark){:root{"
    + _variables(DARK)
    + "--warn:#ffc08a;--warn-back:#3a2716}}"
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main,header,nav{max-width:1360px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 6px}
h2{font-size:1.3rem;margin:44px 0 10px;padding-top:14px;border-top:2px solid var(--faint)}
h3{font-size:1.05rem;margin:26px 0 8px}
p,li{max-width:86ch;overflow-wrap:anywhere}
.subtitle,.note{color:var(--muted)}
.banner{background:var(--warn-back);color:var(--warn);border-left:5px solid currentColor;padding:10px 14px;
font-weight:600;margin:14px 0;border-radius:0 6px 6px 0}
nav{padding-top:10px;font-size:.92rem;display:flex;flex-wrap:wrap;gap:4px 16px}
a{color:var(--c0)}
ul.findings{list-style:none;padding:0;margin:8px 0}
ul.findings li{padding:8px 12px;margin:6px 0;background:var(--pale);border-radius:6px}
.word{display:inline-block;font-size:.78rem;font-weight:600;color:var(--muted);border:1px solid var(--faint);
border-radius:10px;padding:0 8px;margin-right:8px;background:var(--paper)}
details{margin:12px 0;border:1px solid var(--faint);border-radius:6px;padding:0 12px}
summary{cursor:pointer;padding:9px 0;font-weight:600}
.scroll{overflow-x:auto;margin:10px 0;border:1px solid var(--faint);border-radius:6px}
.scroll:focus-visible,button:focus-visible,summary:focus-visible{outline:2px solid var(--c0);outline-offset:1px}
table{border-collapse:collapse;font-size:.87rem;width:100%;font-variant-numeric:tabular-nums}
.caption{color:var(--muted);font-size:.9rem;margin:14px 0 0}
th,td{padding:6px 10px;text-align:left;vertical-align:top;border-top:1px solid var(--faint)}
th{background:var(--pale);white-space:nowrap;padding:0}
th button{font:inherit;font-weight:600;color:inherit;background:none;border:0;padding:7px 10px;cursor:pointer;
width:100%;text-align:inherit}
th button::after{content:"\\2195";color:var(--muted);margin-left:5px;font-weight:400}
th[aria-sort=ascending] button::after{content:"\\2191"}
th[aria-sort=descending] button::after{content:"\\2193"}
td{min-width:4ch;max-width:44ch;overflow-wrap:break-word}
td.num,th.num{text-align:right;white-space:nowrap}
td.flag{color:var(--warn)}
td.long{min-width:26ch}td.short{white-space:nowrap}
td:first-child,th:first-child{position:sticky;left:0;z-index:1}
td:first-child{font-weight:600;min-width:12ch;max-width:30ch;background:var(--paper)}
.bar{display:block;margin:2px 0 0 auto}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:18px;align-items:start}
.charts.pack{display:block;columns:380px;column-gap:18px}
.charts.pack figure{break-inside:avoid;margin-bottom:18px}
.charts.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr))}
figure{margin:0;padding:12px;border:1px solid var(--faint);border-radius:6px;min-width:0}
figcaption{font-size:.85rem;color:var(--muted);margin-bottom:6px}
figcaption b{color:var(--ink);display:block}
svg.chart{display:block;max-width:100%;height:auto;font-family:inherit}
footer{max-width:1360px;margin:40px auto;padding:0 20px;color:var(--muted);font-size:.9rem}
@media (max-width:600px){body{font-size:15px}main,header,nav,footer{padding-left:14px;padding-right:14px}
h1{font-size:1.4rem}figure{padding:8px 4px}}
@media print{:root{color-scheme:light;"""
    + _variables(LIGHT)
    + """--warn:#8a3b00;--warn-back:#fff}
body{font-size:10pt}nav{display:none}.scroll{overflow:visible;border:0}td:first-child,th:first-child{position:static}table{font-size:6.6pt}
th,td{padding:2px 3px;white-space:normal!important;overflow-wrap:anywhere;min-width:0}
td.brief,th.brief{overflow-wrap:normal}th.brief button{white-space:nowrap}
th button{padding:2px 0;white-space:normal}th button::after{content:""!important}
figure,tr,ul.findings li{break-inside:avoid}h2,h3{break-after:avoid}details{border:0;padding:0}
.charts{grid-template-columns:1fr 1fr}.charts.pack{display:block;columns:2;column-gap:12px}
.charts.pack figure{break-inside:avoid;margin-bottom:18px}
.charts.small{grid-template-columns:1fr 1fr 1fr}a{color:inherit}}
"""
)

SCRIPT = """
"use strict";
document.querySelectorAll("table.sortable").forEach(table => {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
    const rows = [...body.rows].map((row, at) => {
      const cell = row.cells[place], number = cell.dataset.v;
      return {row, at, number: number === undefined ? NaN : Number(number), text: cell.textContent.trim()};
    });
    rows.sort((a, b) => {
      const blank = (isNaN(a.number) && !a.text) - (isNaN(b.number) && !b.text);
      if (blank) return blank;
      const numbers = !isNaN(a.number) && !isNaN(b.number);
      if (!numbers && isNaN(a.number) !== isNaN(b.number)) return isNaN(a.number) ? 1 : -1;
      const order = numbers ? a.number - b.number : a.text.localeCompare(b.text, "en", {numeric: true});
      return order * down || a.at - b.at;
    });
    rows.forEach(item => body.append(item.row));
  }));
});
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach(part => part.open = true);
});
addEventListener("afterprint", () => closed.forEach(part => part.open = false));
"""
