"""`python3 -m analysis watch`: what can be asked of it, and its page in a browser while a run goes on.

    test_watch.py --program stablemoe

The browser is Debian's chromium without a screen, driven by Selenium; without it that part is skipped.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "test" / "e2e")]
sys.dont_write_bytecode = True

import analysis

if analysis.missing_modules(("numpy", "h5py")):
    print(f"skipped: {sys.executable} cannot import numpy and h5py")
    sys.exit(77)

import program as p
import synthetic

try:
    import test_browser
except SystemExit:
    test_browser = None

TINY = synthetic.Shape(updates=100, stage1=20, layers=2, experts=4, tokens=256, probes=20, probe_tokens=40, files=4)
LIMIT = 120


class Watch:
    """The command, and what it prints."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "analysis", "watch", *map(str, words)], cwd=ROOT, text=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.said = ""
        while "add -J" not in self.said:
            line = self.process.stdout.readline()
            self.said += line
            if not line:
                raise AssertionError(f"watch ended with {self.process.wait()}: {self.said}")
        self.url, self.port, self.path = p.found(r"(http://127\.0\.0\.1:(\d+)(/[\w-]{20,}/))\n", self.said).groups()

    def ask(self, path: str, method: str = "GET", body: bytes | None = None,
            **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", int(self.port), timeout=LIMIT)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(LIMIT)
        finally:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def files_of(directory: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(directory.rglob("*")) if path.is_file()}


class Server(unittest.TestCase):
    """What is answered, and what is not."""

    def setUp(self) -> None:
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.run_a = Path(held.name) / "a"
        synthetic.write_run(self.run_a, TINY)
        (Path(held.name) / "secret.txt").write_text("not for you")
        self.watch = Watch(self.run_a)
        self.addCleanup(self.watch.kill)

    def test_page_and_nothing_else(self) -> None:
        before = files_of(self.run_a)
        watch = self.watch
        status, headers, body = watch.ask(watch.path)
        self.assertEqual(status, 200)
        self.assertIn(b'<script type="application/json" id="live">', body)
        self.assertIn("default-src 'none'", headers["Content-Security-Policy"])
        self.assertEqual(headers["Cache-Control"], "no-store")
        status, _, body = watch.ask(watch.path + "data")
        self.assertEqual((status, body[:13]), (200, b'{"version":1,'))
        self.assertEqual(watch.ask(watch.path + "data?after=1")[::2], (204, b""))
        self.assertEqual(watch.ask(watch.path, "HEAD")[::2], (200, b""))
        base = watch.path.rstrip("/")
        for path in ("/", base, base[:-1] + "/", base + "x/", "/favicon.ico", "/../etc/passwd", base + "/../secret.txt",
                     base + "/metrics.csv", base + "/a/metrics.csv", base + "/%2e%2e/secret.txt", base + "//etc/passwd",
                     base + "/data/", base + "/data/../../secret.txt", "//" + base, base + "/index.html"):
            status, _, body = watch.ask(path)
            self.assertEqual((status, body), (404, b"not found\n"), path)
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            self.assertEqual(watch.ask(watch.path, method, b"x")[0], 501, method)
        # A name of somebody else's that leads to this address.
        self.assertEqual(watch.ask(watch.path, Host="evil.example")[0], 404)
        self.assertEqual(watch.ask(watch.path, Host="127.0.0.1.evil.example:80")[0], 404)
        self.assertEqual(watch.ask(watch.path, Host="localhost:9999")[0], 200)  # through another forwarded port
        self.assertEqual(files_of(self.run_a), before)
        self.assertEqual(watch.end(), 0)

    def test_this_machine_alone(self) -> None:
        listening = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().split("\n")[1:]]
        own = [words[1] for words in listening if len(words) > 3 and words[3] == "0A"
               and int(words[1].split(":")[1], 16) == int(self.watch.port)]
        self.assertEqual(own, [f"0100007F:{int(self.watch.port):04X}"])
        self.assertRegex(self.watch.said, rf"ssh -N -L {self.watch.port}:127\.0\.0\.1:{self.watch.port} \S+@\S+\n")
        another = Watch(self.run_a)
        self.addCleanup(another.kill)
        self.assertNotEqual(another.path, self.watch.path)
        self.assertEqual(another.end(), 0)

    def test_new_lines(self) -> None:
        """Only what has changed is sent, half a line is none, and a run that is gone leaves the page as it was."""
        watch = self.watch
        self.assertEqual(watch.ask(watch.path + "data")[0], 200)
        lines = (self.run_a / "metrics.csv").read_text().split("\n")
        last = lines[-2].split(",")
        with open(self.run_a / "metrics.csv", "a") as file:
            for update in range(101, 111):
                file.write(",".join([str(update), *last[1:]]) + "\n")
            file.write("111,2,28")
        deadline = time.monotonic() + LIMIT
        while (reply := watch.ask(watch.path + "data?after=1"))[0] == 204 and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertEqual(reply[0], 200)
        self.assertIn(b'"version":2', reply[2])
        self.assertRegex(reply[2], rb'"updates":110\b')
        shutil.rmtree(self.run_a)
        time.sleep(2)
        status, _, body = watch.ask(watch.path + "data")
        self.assertEqual(status, 200, body)

    def test_refusals(self) -> None:
        def call(*words: object) -> tuple[int, str]:
            done = subprocess.run([sys.executable, "-m", "analysis", "watch", *map(str, words)], cwd=ROOT, text=True,
                                  capture_output=True, timeout=LIMIT, check=False)
            return done.returncode, done.stdout + done.stderr

        code, said = call(self.run_a / "nothing")
        self.assertEqual(code, 2)
        self.assertIn("no such directory", said)
        code, said = call(self.run_a, "--port", self.watch.port)
        self.assertEqual(code, 3)
        self.assertIn(f"cannot listen on 127.0.0.1:{self.watch.port}: Address already in use", said)
        for port in ("0", "70000", "x", "-1"):
            code, said = call(self.run_a, f"--port={port}")
            self.assertEqual(code, 2)
            self.assertIn(f"'{port}' is not a port: 1 to 65535", said)


class Browser(unittest.TestCase):
    """A run that goes on, and the page that follows it."""

    program = ""

    def setUp(self) -> None:
        if not test_browser:
            self.skipTest("no browser; jobs/install.sh --test brings it")
        if not self.program:
            self.skipTest("no --program")
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.root = Path(held.name)
        p.write_text(self.root / "text.txt")
        env = p.environment()
        subprocess.run([self.program, "prepare", self.root / "text.txt", "-o", self.root / "corpus.h5", "--vocab", "300"],
                       check=True, env=env, capture_output=True)
        self.run_a = self.root / "going"
        settings = (f"data.corpus={self.root / 'corpus.h5'}", f"run.directory={self.run_a}", "train.updates=1000000",
                    "router.stage1_updates=60", "schedule.warmup=1", "train.checkpoint_every=40", "train.evaluate_every=40",
                    "train.evaluate_sequences=2", "log.probe_every=20", "log.load_every=1")
        words = [word for setting in settings for word in ("-P", setting)]
        self.training = subprocess.Popen([self.program, "train", ROOT / "configs" / "tiny" / "stable.yml", *words], env=env,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(self.stop)
        self.until(lambda: p.last_update(str(self.run_a)) >= 3, "the run has begun")
        self.watch = Watch(self.run_a)
        self.addCleanup(self.watch.kill)
        self.driver = test_browser.browser()
        self.addCleanup(self.driver.quit)
        self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": test_browser.CATCH})

    def stop(self) -> None:
        self.training.terminate()
        self.training.wait(LIMIT)

    def until(self, condition: object, what: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            self.assertIsNone(self.training.poll(), "the run has ended")
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.05)

    def js(self, code: str, *arguments: object) -> object:
        return self.driver.execute_script(code, *arguments)

    def shown(self) -> int:
        """Updates that the page tells of in its head."""
        text = self.js("return document.querySelector('header .sub').textContent")
        return int(re.search(r"([\d,]+) updates?", text).group(1).replace(",", ""))

    def test_it_follows(self) -> None:
        self.driver.get(self.watch.url)
        self.until(lambda: self.js("return document.querySelectorAll('svg.drawing path').length > 1"), "figures are drawn")
        begin = self.shown()
        self.until(lambda: self.shown() > begin, "the page takes in new updates")
        self.until(lambda: self.js("return document.querySelector('#fluctuation svg') !== null"), "probes are drawn")
        # What the reader does to the page stays while it is drawn again.
        self.js("const svg = document.querySelector('#losses svg.drawing'); svg.dispatchEvent("
                "new KeyboardEvent('keydown', {key: '+'}));"
                "document.querySelector('#losses .entry').dispatchEvent(new Event('click'));"
                "const table = document.querySelector('#fluctuation table');"
                "table.querySelectorAll('thead button')[2].click();"
                "document.getElementById('time').scrollIntoView({behavior: 'instant'});")
        state = ("return [document.querySelector('#losses .reset').hidden, document.querySelector('#losses .entry')"
                 ".getAttribute('opacity'), [...document.querySelectorAll('#fluctuation th')].findIndex("
                 "th => th.getAttribute('aria-sort') !== 'none' && th.scope === 'col'), Math.round(scrollY / 8)]")
        before, at = self.js(state), self.shown()
        self.assertEqual(before[:3], [False, "0.35", 2])
        self.assertGreater(before[3], 20)
        self.until(lambda: self.shown() > at, "the page goes on after the reader's changes")
        time.sleep(0.5)
        after = self.js(state)
        self.assertEqual(after[:3], before[:3])
        self.assertLess(abs(after[3] - before[3]), 20, "the place where one reads stays, but for what came above it")
        self.js("document.querySelector('.watch button').click()")
        at, reached = self.shown(), p.last_update(str(self.run_a))
        self.until(lambda: p.last_update(str(self.run_a)) > reached + 5, "the run goes on")
        time.sleep(4.5)
        self.assertEqual(self.shown(), at)
        self.js("document.querySelector('.watch button').click()")
        self.until(lambda: self.shown() > at, "the page goes on after a pause")
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": False})
        self.assertLess(self.js("return document.getElementById('side').offsetHeight"), 90)
        self.assertEqual(self.watch.end(), 0)
        self.until(lambda: "not reachable" in self.js("return document.querySelector('.watch .state').textContent"), "it is told")
        self.assertEqual(self.js("return faults"), [])
        self.assertNotRegex(self.js("return document.getElementById('main').innerText"), r"NaN|undefined|\bnull\b|Infinity")
        left = set(os.listdir(self.run_a)) - {"metrics.csv", "log.txt", "used.yml", "checkpoints", "routing", "lock",
                                              "tokenizer.model"}
        self.assertEqual(left, set())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default="")
    options, others = parser.parse_known_args()
    Browser.program = options.program
    unittest.main(argv=[sys.argv[0], *others])
