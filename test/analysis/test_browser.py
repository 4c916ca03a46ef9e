"""The report in a browser: Debian's chromium without a screen, driven by Selenium.

One browser opens one comparison of made-up runs; every test uses that page. Exit status 77
(skipped) where the browser or Selenium is missing.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
import tempfile
import time
import unittest
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

import analysis

MISSING = [f"python3-{name}" for name in analysis.missing_modules(("numpy", "h5py", "selenium"))]
MISSING += [package for package, command in (("chromium", "chromium"), ("chromium-driver", "chromedriver"))
            if not shutil.which(command)]
if MISSING:
    print(f"skipped: the report is not tried in a browser: {', '.join(MISSING)} missing; "
          "jobs/install.sh --test brings it")
    sys.exit(77)

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

import synthetic
from analysis.__main__ import main

SHAPE = synthetic.Shape(updates=120, stage1=40, layers=2, experts=8, tokens=512, probes=30, probe_tokens=256, files=2)

# What is saved is kept here instead of on the disk: {name, type, size, head}.
CATCH = """
window.saved = [];
window.faults = [];
addEventListener("error", (event) => faults.push(event.message));
addEventListener("unhandledrejection", (event) => faults.push(String(event.reason)));
URL.createObjectURL = (blob) => { window.blob = blob; return "data:,"; };
HTMLAnchorElement.prototype.click = function () {
  const entry = { name: this.download, type: blob.type, size: blob.size };
  saved.push(entry);
  const reader = new FileReader();
  reader.onload = () => { entry.head = reader.result; };
  reader.readAsDataURL(blob);
};
"""


def browser() -> webdriver.Chrome:
    """A browser without a screen."""
    options = Options()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                     "--no-first-run", "--disable-background-networking", "--disable-extensions", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


class Browser(unittest.TestCase):
    """A comparison of two runs with two MoE layers."""

    @classmethod
    def setUpClass(cls) -> None:
        held = tempfile.TemporaryDirectory()
        cls.addClassCleanup(held.cleanup)
        root = Path(held.name)
        for i, name in enumerate(("first", "second")):
            synthetic.write_run(root / name, synthetic.Shape(**{**SHAPE.__dict__, "stage1": (40, 200)[i]}))
            synthetic.write_tokens(root / name, experts=8, layers=2, records=8, tokens=500)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            assert main(["report", str(root / "first"), str(root / "second"), "-q", "-o", str(root / "r.html")]) == 0
        cls.driver = browser()
        cls.addClassCleanup(cls.driver.quit)
        cls.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": CATCH})
        cls.show("light")
        cls.driver.get(f"file://{root / 'r.html'}")
        cls.wait("document.querySelectorAll('svg.drawing path').length > 8")

    @classmethod
    def show(cls, theme: str, width: int = 1280) -> None:
        cls.driver.execute_cdp_cmd("Emulation.setEmulatedMedia",
                                   {"features": [{"name": "prefers-color-scheme", "value": theme}]})
        cls.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                   {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})

    @classmethod
    def js(cls, code: str, *arguments: object) -> object:
        return cls.driver.execute_script(code, *arguments)

    @classmethod
    def wait(cls, condition: str, limit: float = 60) -> None:
        end = time.monotonic() + limit
        while not cls.js(f"return Boolean({condition})"):
            if time.monotonic() > end:
                raise AssertionError(f"not within {limit:.0f} s: {condition}")
            time.sleep(0.05)

    def tearDown(self) -> None:
        """Whatever a test did, the page said nothing of errors."""
        self.assertEqual(self.js("return faults"), [])
        self.assertEqual([entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")], [])

    def test_every_section_is_there_and_drawn(self) -> None:
        names = self.js("return [...document.querySelectorAll('#nav a')].map(a => a.getAttribute('href').slice(1))")
        self.assertEqual(names, ["overview", "losses", "fluctuation", "loads", "gates", "time", "map", "routers", "experts",
                                 "passage", "flow", "gate-detail", "settings"])
        for name in names:
            self.assertGreater(self.js("return document.getElementById(arguments[0]).offsetHeight", name), 60, name)
        empty = self.js("return [...document.querySelectorAll('svg.drawing')].filter(d => d.querySelectorAll('path,rect,image')"
                        ".length < 3).map(d => d.getAttribute('aria-label'))")
        self.assertEqual(empty, [])
        self.assertNotIn("NaN", self.js("return [...document.querySelectorAll('svg.drawing')].map(d => d.outerHTML).join()"))
        self.assertNotRegex(self.js("return document.getElementById('main').innerText"), r"NaN|undefined|\bnull\b|Infinity")

    def test_tables_sort(self) -> None:
        column = ("const t = document.querySelector('#fluctuation table'); const i = arguments[0];"
                  "if (arguments[1]) t.querySelectorAll('thead button')[i].click();"
                  "return [...t.querySelectorAll('tbody tr')].map(r => parseFloat(r.children[i].textContent))")
        before = self.js(column, 3, False)
        first, second = self.js(column, 3, True), self.js(column, 3, True)
        self.assertEqual(first, sorted(before))
        self.assertEqual(second, sorted(before, reverse=True))
        self.assertEqual(self.js("return document.querySelectorAll('#fluctuation th[aria-sort=descending]').length"), 1)
        self.assertEqual(len(before), 5)  # two runs of two layers, and the published figures
        self.assertIn(40.9, before)

    def test_slider_over_updates(self) -> None:
        get = ("const p = document.querySelector('#passage'), s = p.querySelector('input[type=range]');"
               "if (arguments[0] !== null) { s.value = arguments[0]; s.dispatchEvent(new Event('input', {bubbles: true})); }"
               "return [p.querySelector('output').textContent, [...p.querySelectorAll('.token')].map(t => t.dataset.expert).join()]")
        (last, experts), (first, other) = self.js(get, None), self.js(get, 0)
        self.assertEqual((last.split(" · ")[0], first.split(" · ")[0]), ("update 120", "update 4"))
        self.assertNotEqual(experts, other)
        self.assertEqual(experts.count(","), 127)
        self.js("document.querySelector('#passage .token').dispatchEvent(new Event('pointerenter'))")
        self.assertIn("id ", self.js("return document.querySelector('#passage .about').textContent"))
        self.js("document.querySelector('#passage .play').click()")
        self.wait("document.querySelector('#passage output').textContent !== 'update 4 · stage 1'")

    def test_saving(self) -> None:
        labels = self.js("return [...document.querySelectorAll('figure.card')].map(f => [...f.querySelectorAll('.tools button')]"
                         ".filter(b => ['SVG', 'PNG', 'CSV'].includes(b.textContent)).length)")
        self.assertTrue(all(n >= 1 for n in labels) and labels.count(3) >= 8, labels)
        # Every SVG and CSV; pictures of one figure of each kind, since drawing them takes time.
        n = self.js("saved.length = 0; const p = new Set(['fluctuation', 'time', 'map', 'flow', 'passage']); let n = 0;"
                    "for (const b of document.querySelectorAll('figure.card .tools button')) {"
                    "  const png = b.textContent === 'PNG' && p.delete(b.closest('section').id);"
                    "  if (png || ['SVG', 'CSV'].includes(b.textContent)) { b.click(); n++; } } return n")
        self.wait(f"saved.length === {n} && saved.every(s => s.head)")
        self.assertEqual(sum(entry["name"].endswith(".png") for entry in self.js("return saved")), 5)
        signs = {"csv": b"\xef\xbb\xbf", "png": b"\x89PNG\r\n\x1a\n", "svg": b"<svg xmlns"}
        for entry in self.js("return saved"):
            content = base64.b64decode(entry["head"].partition(",")[2])
            kind = entry["name"].rpartition(".")[2]
            self.assertTrue(content.startswith(signs[kind]), entry["name"])
            self.assertGreater(len(content), {"csv": 40, "png": 4000, "svg": 900}[kind], entry["name"])
            if kind == "csv":
                lines = content.decode("utf-8-sig").splitlines()
                self.assertGreater(len(lines), 1, entry["name"])
                self.assertNotIn("undefined", content.decode(), entry["name"])
            if kind == "svg":
                self.assertNotIn(b"var(--", content, entry["name"])

    def test_zoom(self) -> None:
        self.js("document.querySelector('#fluctuation svg').scrollIntoView({block: 'center', behavior: 'instant'})")
        box = self.js("const b = document.querySelector('#fluctuation .sheet').getBoundingClientRect();"
                      "return [b.x, b.y, b.width, b.height]")
        ticks = "return [...document.querySelectorAll('#fluctuation svg text')].map(t => t.textContent).join('|')"
        whole = self.js(ticks)
        y = box[1] + box[3] / 2
        for kind, x, buttons in (("mouseMoved", 0.2, 0), ("mousePressed", 0.2, 1), ("mouseMoved", 0.35, 1),
                                 ("mouseReleased", 0.35, 0)):
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, "x": box[0] + x * box[2], "y": y,
                                                                     "button": "left", "buttons": buttons, "clickCount": 1})
        self.wait("!document.querySelector('#fluctuation .reset').hidden")
        self.assertNotEqual(self.js(ticks), whole)
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": box[0] + 0.5 * box[2], "y": y})
        self.wait("!document.querySelector('#fluctuation .tip').hidden")
        self.js("document.querySelector('#fluctuation .reset').click()")
        self.assertEqual(self.js(ticks), whole)

    def test_choices(self) -> None:
        title = "return document.querySelector('#map h3').textContent"
        press = "[...document.querySelectorAll(arguments[0])].find(b => b.textContent === arguments[1]).click()"
        self.assertEqual(self.js(title), "Load of each expert, MoE layer 0 · first")
        self.js(press, ".picker button", "second")
        self.js(press, ".picker button", "1")
        self.wait("document.querySelector('#map image')")
        self.assertEqual(self.js(title), "Load of each expert, MoE layer 1 · second")
        self.assertEqual(self.js("return document.querySelectorAll('.picker [aria-pressed=true]').length"), 2)
        for place, name in (("#loads button", "dead experts"), ("#loads button", "entropy"), ("#losses button", "perplexity"),
                            ("#experts button", "table"), ("#flow button", "matrices")):
            self.js(press, place, name)
        self.assertGreater(self.js("return document.querySelectorAll('#experts tbody tr').length"), 50)
        self.wait("document.querySelector('#flow image')")
        before = self.js("return document.querySelectorAll('#fluctuation svg path').length")
        self.js("document.querySelector('#fluctuation .entry').dispatchEvent(new Event('click'))")
        self.assertLess(self.js("return document.querySelectorAll('#fluctuation svg path').length"), before)
        self.js("document.querySelector('#fluctuation .entry').dispatchEvent(new Event('click'))")
        for place, name in ((".picker button", "first"), (".picker button", "0"), ("#experts button", "cards"),
                            ("#flow button", "ribbons")):
            self.js(press, place, name)

    def test_looks(self) -> None:
        """In both themes and on narrow windows: not blank, and nothing wider than the window."""
        pictures = set()
        for theme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
            self.show(theme, width)
            self.wait("document.querySelectorAll('#losses svg.drawing path').length > 4")
            time.sleep(0.3)  # sizes settle
            self.assertLessEqual(self.js("return document.documentElement.scrollWidth"), width)
            self.js("document.querySelector('#fluctuation').scrollIntoView({behavior: 'instant'})")
            shot = base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
            self.assertGreater(len(shot), 20000, (theme, width))
            pictures.add(self.js("return getComputedStyle(document.body).backgroundColor"))
        self.assertEqual(len(pictures), 2)
        self.show("light")

    def test_images(self) -> None:
        """A run of images has sections of its own, and says nothing of tokens."""
        root = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, root)
        synthetic.write_images_run(root / "run")
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            assert main(["report", str(root / "run"), "-q", "-o", str(root / "r.html")]) == 0
        back = self.driver.current_url
        self.driver.get(f"file://{root / 'r.html'}")
        self.addCleanup(self.driver.get, back)
        self.wait("document.querySelectorAll('.pictures svg').length === 12")
        names = self.js("return [...document.querySelectorAll('#nav a')].map(a => a.getAttribute('href').slice(1))")
        self.assertEqual(names, ["overview", "losses", "loads", "gates", "time", "map", "experts", "passage", "flow",
                                 "gate-detail", "settings"])
        text = self.js("return document.getElementById('main').innerText")
        self.assertNotRegex(text, r"NaN|undefined|\bnull\b|Infinity")
        self.assertNotRegex(text.replace("log.tokens_every", "").replace("moe.experts", ""), r"(?i)\btoken|perplexity|text")
        self.assertIn("accuracy", text.lower())
        frames = "return document.querySelectorAll('.pictures rect').length"
        self.assertEqual(self.js(frames), 12 * 3)
        self.js("document.querySelector('.chip').click()")
        self.assertEqual(self.js(frames), 12 * 2)



class Gates(unittest.TestCase):
    """A dense model with gates: no MoE layer, and a section on what skips."""

    def test_section(self) -> None:
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        root = Path(held.name)
        synthetic.write_run(root / "gates", SHAPE)
        shutil.rmtree(root / "gates" / "routing")
        synthetic.write_gates(root / "gates")
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            self.assertEqual(main(["report", str(root / "gates"), "-q", "-o", str(root / "r.html")]), 0)
        driver = browser()
        self.addCleanup(driver.quit)
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": CATCH})
        driver.get(f"file://{root / 'r.html'}")
        names = driver.execute_script(
            "return [...document.querySelectorAll('#nav a')].map(a => a.getAttribute('href').slice(1))")
        self.assertIn("skips", names)
        self.assertNotIn("map", names)
        section = "document.getElementById('skips')"
        self.assertEqual(driver.execute_script(f"return {section}.querySelectorAll('svg.drawing').length"), 2)
        self.assertEqual(driver.execute_script(f"return {section}.querySelectorAll('table').length"), 2)
        text = driver.execute_script(f"return {section}.innerText")
        self.assertIn("Over 20,480 training tokens at 5 updates from 6 to 10.", text)
        self.assertNotRegex(text, r"NaN|undefined|\bnull\b|Infinity")
        self.assertEqual(driver.execute_script("return faults"), [])
        self.assertEqual([e for e in driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")], [])


if __name__ == "__main__":
    unittest.main()
