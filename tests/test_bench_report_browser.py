"""The report of ``stager bench`` in a real browser, by day, at night, on a narrow screen and as on paper: nothing is loaded, nothing overlaps.

What is asked of a page is asked of a page that lacks it too.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stager.jobs.bench.report import write_report
from tests import bench_samples

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
NIGHT = "--blink-settings=preferredColorScheme=0"
SAMPLES = {
    "realistic": bench_samples.realistic,
    "awkward": bench_samples.awkward,
    "empty": bench_samples.empty,
    "swept": bench_samples.swept,
}

PROBE = """
const box = element => { const r = element.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom].map(Math.round); };
const seen = element => element.getClientRects().length > 0;
const name = element => element.textContent.slice(0, 40);
const bad = [];
let texts = 0;
for (const chart of document.querySelectorAll("svg.chart")) {
  if (!seen(chart)) continue;
  if (chart.getBoundingClientRect().width < 0.84 * chart.viewBox.baseVal.width) bad.push("small letters: " + chart.getAttribute("aria-label"));
  const outer = box(chart), words = [...chart.querySelectorAll("text")].filter(seen);
  texts += words.length;
  const boxes = words.map(box);
  boxes.forEach((one, at) => {
    if (one[0] < outer[0] - 1 || one[1] < outer[1] - 1 || one[2] > outer[2] + 1 || one[3] > outer[3] + 1)
      bad.push("outside its chart: " + name(words[at]));
    for (let other = at + 1; other < boxes.length; other++) {
      const two = boxes[other];
      if (Math.min(one[2], two[2]) - Math.max(one[0], two[0]) > 1 && Math.min(one[3], two[3]) - Math.max(one[1], two[1]) > 3)
        bad.push("overlap: " + name(words[at]) + " / " + name(words[other]));
    }
  });
}
for (const cell of document.querySelectorAll("td, th"))
  if (cell.scrollWidth > cell.clientWidth + 1) bad.push("wider than its cell: " + name(cell));
const light = colour => { const c = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255).map(v => v <= 0.04 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]; };
const ratio = (a, b) => { const one = light(a), two = light(b); return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05); };
const stroke = mark => getComputedStyle(mark).stroke;
for (const mark of document.querySelectorAll("line.whisker")) {
  if (!mark.parentElement.querySelector("rect")) continue;
  const at = name => mark.getAttribute(name);
  const under = [...mark.parentElement.querySelectorAll("line.whisker-edge")].find(edge => ["x1", "y1", "x2", "y2"].every(n => edge.getAttribute(n) === at(n)));
  if (!under || ratio(stroke(mark), stroke(under)) < 4.5) bad.push("whisker lost in its bar: " + name(mark.parentElement));
}
for (const block of document.querySelectorAll("h1, h2, h3, p, li, figcaption, svg.chart, .table"))
  if (seen(block) && box(block)[2] > innerWidth + 1) bad.push("wider than the page: " + name(block));
const paper = light(getComputedStyle(document.body).backgroundColor);
const contrast = colour => { const one = light(colour); return (Math.max(one, paper) + 0.05) / (Math.min(one, paper) + 0.05); };
for (const word of document.querySelectorAll("p, td, th, a, figcaption"))
  if (contrast(getComputedStyle(word).color) < 4.5) bad.push("pale: " + name(word));
for (const word of document.querySelectorAll("svg text"))
  if (contrast(getComputedStyle(word).fill) < 4.5) bad.push("pale: " + name(word));
const out = document.createElement("output");
out.id = "probe";
out.textContent = JSON.stringify({bad: [...new Set(bad)], texts, paper, width: innerWidth, across: document.documentElement.scrollWidth,
  charts: [...document.querySelectorAll("svg.chart")].filter(seen).length,
  loaded: performance.getEntriesByType("resource").map(entry => entry.name)});
parent.document.body.append(out);
"""
FRAME = '<!doctype html><body style="margin:0"><iframe style="border:0" width="{}" height="1000" srcdoc="{}"></iframe></body>'


def browse(tmp_path: Path, page: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A browser of its own on `page`; nothing of it stays."""
    profile = tmp_path / f"profile-{len(list(tmp_path.iterdir()))}"
    argv = [str(CHROMIUM), *QUIET, f"--user-data-dir={profile}", *words, page.as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180)
    shutil.rmtree(profile, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    return done


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the page made the browser write on its console."""
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def probed(
    tmp_path: Path, page: Path, width: int, *words: str, swap: dict[str, str] | None = None
) -> dict[str, Any]:
    """What `PROBE` finds in a copy of `page` in which the probe is the only script, with `swap` done to its text.

    The copy stands in a frame, for no window is narrower than 500.
    """
    text = page.read_text("utf-8").replace(
        "default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'"
    )
    text = text.replace("default-src &#x27;none&#x27;", "default-src 'none'; script-src 'unsafe-inline'")
    for old, new in (swap or {}).items():
        assert old in text
        text = text.replace(old, new)
    copy = page.with_name("probed.html")
    text = text.replace("</body>", f"<script>{PROBE}</script></body>")
    copy.write_text(FRAME.format(width, html.escape(text)), "utf-8")
    done = browse(tmp_path, copy, "--dump-dom", f"--window-size={max(500, width)},1000", *words)
    found = re.search(r'<output id="probe">(.*?)</output>', done.stdout, re.DOTALL)
    assert found, done.stderr
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


def made(tmp_path: Path, sample: str) -> Path:
    """The page of a sample."""
    write_report(SAMPLES[sample](), str(tmp_path / "report"))
    return tmp_path / "report" / "report.html"


@pytest.fixture
def realistic(tmp_path: Path) -> Path:
    return made(tmp_path, "realistic")


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_browser_has_nothing_to_complain_of(tmp_path: Path, sample: str) -> None:
    done = browse(tmp_path, made(tmp_path, sample), "--dump-dom")
    assert "How fast the model loads" in done.stdout
    assert complaints(done) == []


def test_a_complaint_is_seen(tmp_path: Path, realistic: Path) -> None:
    text = realistic.read_text("utf-8")
    for wrong in ("<script>1</script>", '<img src="http://127.0.0.1:9/x.png">'):
        realistic.write_text(text.replace("</body>", f"{wrong}</body>"), "utf-8")
        assert complaints(browse(tmp_path, realistic, "--dump-dom")) != []


VIEWS = [
    *(("realistic", width, words) for width, words in ((1200, ()), (1200, (NIGHT,)), (760, ()), (400, ()), (400, (NIGHT,)))),
    ("awkward", 1200, ()), ("awkward", 400, ()), ("empty", 400, ()),
    ("swept", 1200, ()), ("swept", 1200, (NIGHT,)), ("swept", 400, ()),
]  # fmt: skip


@pytest.mark.parametrize(("sample", "width", "words"), VIEWS)
def test_nothing_overlaps_is_cut_or_pale(
    tmp_path: Path, sample: str, width: int, words: tuple[str, ...]
) -> None:
    page = made(tmp_path, sample)
    found = probed(tmp_path, page, width, *words)
    assert found["bad"] == []
    assert found["width"] == width
    assert found["across"] <= width
    assert found["charts"] >= 1
    assert found["texts"] > 5
    assert found["loaded"] == []
    assert (found["paper"] < 0.1) == (NIGHT in words)


def test_paper_is_white_and_wide_enough(tmp_path: Path, realistic: Path) -> None:
    """The rules for paper, on a screen as wide as an A4 page between its margins; at night too."""
    swap = {"@media print": "@media all", "@media screen": "@media not all"}
    found = probed(tmp_path, realistic, 695, NIGHT, swap=swap)
    assert found["bad"] == []
    assert found["paper"] == 1
    assert found["across"] <= 695


def test_it_prints(tmp_path: Path, realistic: Path) -> None:
    paper = tmp_path / "report.pdf"
    browse(tmp_path, realistic, "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    data = paper.read_bytes()
    assert data.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 40


def test_what_is_wrong_is_seen(tmp_path: Path, realistic: Path) -> None:
    cases = {
        "overlap": {"font: 12px system-ui": "font: 24px system-ui"},
        "outside its chart": {"font: 12px system-ui": "font: 24px system-ui"},
        "small letters": {"max-width: 100%; height: auto": "max-width: 600px; height: auto"},
        "pale": {"--muted: #57606a": "--muted: #c0c0c0"},
        "whisker": {".whisker-edge { stroke: var(--paper)": ".whisker-edge { stroke: var(--cold)"},
        "wider than the page": {
            "svg.chart { display: block; max-width: 100%": "svg.chart { display: block; min-width: 1500px"
        },
        "wider than its cell": {
            "td code { white-space: nowrap; }": "td code { display: block; width: 90em; } td { max-width: 4em; }"
        },
    }
    for what, swap in cases.items():
        bad = probed(tmp_path, realistic, 1200, swap=swap)["bad"]
        assert [one for one in bad if one.startswith(what)], (what, bad)


def test_a_request_is_seen(tmp_path: Path, realistic: Path) -> None:
    (realistic.parent / "other.css").write_text("body { color: red }")
    swap = {
        "default-src 'none'": "default-src 'self' file:",
        "<style>": '<link rel="stylesheet" href="other.css"><style>',
    }
    found = probed(tmp_path, realistic, 1200, "--allow-file-access-from-files", swap=swap)
    assert [Path(name).name for name in found["loaded"]] == ["other.css"]
