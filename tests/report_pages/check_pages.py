#!/usr/bin/env python3
"""check_pages.py PAGE ...: lays report pages (.html) and pictures (.svg) out in a headless Chromium, at a desktop's and a
phone's width, in light and dark, and fails where a text leaves the page or its own box, lies over another, or is too faint
to read, or where a page ran something.

With --screenshots FOLDER it also keeps pictures."""
import argparse
import html
import json
import pathlib
import re
import subprocess
import sys
import tempfile

WIDTHS = (1280, 390)
SCHEMES = {"light": [], "dark": ["--blink-settings=preferredColorScheme=0"]}
CHROMIUM = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]

# The page stands in a frame of the width in question, so that the script that measures is no part of it.
# Frames take their scheme from what they stand in.
HEAD = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><style>body{margin:0}</style>'
HARNESS = HEAD + """<style>iframe{border:0;height:900px}</style>%s<pre id="result"></pre><script>
const slack = 1.5;  // CSS pixels: glyphs of neighbouring lines may touch
function boxes(frame) {
  const doc = frame.contentDocument, found = [];
  const walker = doc.createTreeWalker(doc.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.data.trim()) continue;
    const parent = node.parentElement;
    if (parent.closest('title, style')) continue;
    const range = doc.createRange();
    range.selectNodeContents(node);
    const rects = parent instanceof frame.contentWindow.SVGElement ? [parent.getBoundingClientRect()] : range.getClientRects();
    const scroll = parent.closest('.scroll'), svg = parent.closest('svg');
    for (const r of rects) {
      if (r.width && r.height) found.push({node, parent, text: node.data.trim().slice(0, 40), l: r.left, t: r.top, r: r.right, b: r.bottom,
        scroll, svg: svg && svg.getBoundingClientRect()});
    }
  }
  return found;
}
// Relative luminance and contrast, as WCAG 2.1 defines them.
function channels(color) { return color.match(/[\d.]+/g).map(Number); }
function luminance(rgb) {
  const [r, g, b] = rgb.slice(0, 3).map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(frame, element) {
  const style = frame.contentWindow.getComputedStyle(element);
  const ink = channels(element instanceof frame.contentWindow.SVGElement ? style.fill : style.color);
  let ground = [255, 255, 255, 0];
  for (let e = element; e && !ground[3]; e = e.parentElement) {
    const [r, g, b, a = 1] = channels(frame.contentWindow.getComputedStyle(e).backgroundColor);
    ground = [r, g, b, a];
  }
  const [low, high] = [luminance(ink), luminance(ground)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
function check(frame) {
  const doc = frame.contentDocument, width = frame.clientWidth, problems = [];
  if (doc.documentElement.scrollWidth > width) problems.push('the page is ' + doc.documentElement.scrollWidth + ' wide');
  const found = boxes(frame);
  for (const a of found) {
    const seen = contrast(frame, a.parent);
    if (seen < 4.5) problems.push('"' + a.text + '" has a contrast of ' + seen.toFixed(2));
    if (!a.scroll && (a.l < -slack || a.r > width + slack)) problems.push('"' + a.text + '" leaves the page');
    if (a.svg && (a.l < a.svg.left - slack || a.r > a.svg.right + slack || a.t < a.svg.top - slack || a.b > a.svg.bottom + slack))
      problems.push('"' + a.text + '" leaves its chart');
  }
  found.sort((a, b) => a.t - b.t);
  for (let i = 0; i < found.length; ++i) {
    for (let j = i + 1; j < found.length && found[j].t < found[i].b; ++j) {
      const a = found[i], b = found[j];
      if (a.node === b.node) continue;
      // A chart's and a line's boxes are higher than their letters.
      const high = Math.min(a.b, b.b) - Math.max(a.t, b.t), wide = Math.min(a.r, b.r) - Math.max(a.l, b.l);
      if (wide > slack && high > 0.25 * Math.min(a.b - a.t, b.b - b.t)) problems.push('"' + a.text + '" lies over "' + b.text + '"');
    }
  }
  if (doc.querySelector('main script')) problems.push('a script of a text became one of the page');
  return {texts: found.length, ground: frame.contentWindow.getComputedStyle(doc.body).backgroundColor, problems: problems.slice(0, 20)};
}
onload = () => {
  const result = {};
  for (const frame of document.querySelectorAll('iframe')) result[frame.width] = check(frame);
  document.getElementById('result').textContent = JSON.stringify(result);
};
</script>"""


def run(arguments, url):
    return subprocess.run(CHROMIUM + arguments + [url], capture_output=True, text=True, timeout=240, check=True).stdout


def as_html(page):
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".svg":
        return text
    # A picture brings its own ground.
    return ('<!doctype html><style>:root{color-scheme:light dark}body{margin:0;background:#fff}@media (prefers-color-scheme:dark)'
            '{body{background:#15181c}}svg{display:block;max-width:100%;height:auto}</style>' + text)


def measure(page, folder, scheme):
    """{width: what check() found}."""
    text = html.escape(as_html(page), quote=True)
    frames = "".join(f'<iframe width="{w}" srcdoc="{text}"></iframe>' for w in WIDTHS)
    harness = folder / "harness.html"
    harness.write_text(HARNESS % frames, encoding="utf-8")
    dom = run(SCHEMES[scheme] + ["--dump-dom", "--window-size=1400,1000"], harness.as_uri())
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)
    if not found or not found[1]:
        raise RuntimeError(f"{page}: Chromium gave no result")
    return json.loads(html.unescape(found[1]))


def screenshots(page, name, folder):
    # A window can't be as narrow as a phone: the page stands in a frame there too.
    for width in WIDTHS:
        for scheme, option in SCHEMES.items():
            frame = folder / "frame.html"
            frame.write_text(f'{HEAD}<iframe style="border:0;width:{width}px;height:4000px" srcdoc="{html.escape(as_html(page), quote=True)}">'
                             '</iframe>', encoding="utf-8")
            run(option + [f"--screenshot={folder / f'{name}_{width}_{scheme}.png'}", f"--window-size={max(width, 500)},4000"],
                frame.resolve().as_uri())
            frame.unlink()


def problems_of(page, folder):
    problems, grounds = [], {}
    for scheme in SCHEMES:
        for width, result in measure(page, folder, scheme).items():
            problems += [f"at {width}, {scheme}: {problem}" for problem in result["problems"]]
            if result["texts"] == 0:
                problems.append(f"at {width}, {scheme}: nothing is shown")
            grounds[scheme] = result["ground"]
    if grounds["light"] == grounds["dark"]:
        problems.append(f"light and dark have the same ground, {grounds['light']}")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=pathlib.Path)
    parser.add_argument("--screenshots", type=pathlib.Path)
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for page in arguments.pages:
            problems = problems_of(page, pathlib.Path(folder))
            name = "_".join([*page.parent.parts[-2:], page.stem])
            print(f"{name}: {len(problems)} problems", *problems, sep="\n  ")
            failed = failed or bool(problems)
            if arguments.screenshots:
                arguments.screenshots.mkdir(parents=True, exist_ok=True)
                screenshots(page, name, arguments.screenshots)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
