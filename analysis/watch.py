"""`python3 -m analysis watch RUN [RUN...] [--port N]`: the report's page of runs that go on, in a browser.

This file uses the standard library alone, as analysis/__init__.py.
"""

from __future__ import annotations

import argparse
import getpass
import hmac
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import analysis
from analysis.report import MARKS, names_of

HELP = """\
Serves the page of `python3 -m analysis report` to this machine alone (127.0.0.1), under a path
that nobody can guess, and prints its address. The page takes in what the runs write: metrics.csv
as it grows, routing logs as they are completed. Runs are only read; nothing but the page and its
numbers can be asked for. How to reach it from another machine is printed as well. Ctrl-C ends it.

Exit status: 0 after Ctrl-C; 2 where a RUN is no directory, or Python packages are missing; 3 where
the port is taken.

Needs numpy, h5py and PyYAML (Debian: python3-numpy python3-h5py python3-yaml)."""

POLL_S = 2.0
"""Seconds between two questions of the page."""

BUSY_SHARE = 0.2
"""Share of a core that reading may take: a page that took 3 s of it is made again after 15 s at the earliest."""

LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
"""What a browser says it asks, directly or through a forwarded port; another name is somebody else's page."""

HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
           "Cross-Origin-Resource-Policy": "same-origin",
           "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                                      "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                                      "frame-ancestors 'none'"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m analysis watch", epilog=HELP,
                                     description="A page on runs that follows them while they train.",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, nargs="+", help="run directory")
    parser.add_argument("--port", metavar="N", type=_port, default=0, help="port of 127.0.0.1 (default: any that is free)")
    parser.add_argument("--title", metavar="TEXT", help="what stands at the top of the page")
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port: 1 to 65535")
    return int(text)


def _stamp(paths: list[Path]) -> tuple[Any, ...]:
    """What changes when a run has written: names, sizes and times of the files that the page is made of."""
    found = []
    for run in paths:
        files = [run / "metrics.csv", run / "used.yml", run / "valid.json", run / "test.json"]
        try:
            files += sorted((run / "routing").glob("*.h5"))
        except OSError:
            pass
        for file in files:
            try:
                about = file.stat()
            except OSError:
                continue
            found.append((str(file), about.st_size, about.st_mtime_ns, about.st_ino))
    return tuple(found)


class Follower:
    """The numbers of the page, made again when runs have written and not more often than reading may cost."""

    def __init__(self, paths: list[Path], title: str | None) -> None:
        self.paths, self.title = paths, title
        self.lock = threading.Lock()
        self.stamp: tuple[Any, ...] | None = None
        self.version = 0
        self.text = ""
        self.not_before = 0.0

    def refresh(self) -> None:
        """Collect again if there is something new. A run that cannot be read now leaves the page as it was."""
        with self.lock:
            if time.monotonic() < self.not_before:
                return
            stamp = _stamp(self.paths)
            if stamp == self.stamp:
                return
            begin, spent = time.monotonic(), time.process_time()
            text = self._collect()
            self.not_before = begin + max(0.5 * POLL_S, (time.process_time() - spent) / BUSY_SHARE)
            self.stamp, self.text = stamp, text
            self.version += 1

    def _collect(self) -> str:
        from analysis import report
        from analysis.report import page

        data, warnings = report.collect_all(self.paths, quiet=True)
        content = page.content(self.title or page.title_of(data), data, warnings)
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    def reply(self, after: int | None) -> bytes | None:
        """{"version", "time", "data"} as JSON; None where the page has this version already."""
        try:
            self.refresh()
        except Exception as error:  # a file that is replaced while it is read; the next question tries again
            print(f"watch: not read this time: {error}", file=sys.stderr)
            if not self.version:
                raise
        if after == self.version:
            return None
        return f'{{"version":{self.version},"time":{time.time():.0f},"data":{self.text}}}'.encode()


def _handler(follower: Follower, path: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "StableMoE", ""
        timeout = 60

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD" and status != 204:
                self.wfile.write(body)

        def do_GET(self) -> None:
            place, _, query = self.path.partition("?")
            # Pages of other names that lead to this address (DNS rebinding) have another host.
            known = LOCAL_HOST.fullmatch(self.headers.get("Host", "")) is not None
            asked = re.fullmatch(r"/([\w-]+)/(data)?", place)
            if not known or not asked or not hmac.compare_digest(asked.group(1).encode(), path.encode()):
                self._send(404, "text/plain; charset=utf-8", b"not found\n")
                return
            try:
                self._answer(asked.group(2) == "data", query)
            except Exception as error:
                self._send(503, "text/plain; charset=utf-8", f"the runs cannot be read now: {error}\n".encode())

        do_HEAD = do_GET

        def _answer(self, wants_data: bool, query: str) -> None:
            if wants_data:
                after = re.fullmatch(r"after=(\d{1,15})", query)
                body = follower.reply(int(after.group(1)) if after else None)
                self._send(204 if body is None else 200, "application/json; charset=utf-8", body or b"")
                return
            from analysis.report import page

            follower.reply(None)
            with follower.lock:
                text, version = follower.text, follower.version
            content = json.loads(text)
            html = page.render_content(content, live={"version": version, "seconds": POLL_S})
            self._send(200, "text/html; charset=utf-8", html.encode())

        def log_message(self, *words: object) -> None:
            """Not a line for every question."""

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is nothing to report."""


def _print_address(names: list[str], port: int, path: str) -> None:
    host = socket.gethostname()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = os.environ.get("USER", "USER")
    print(f"watch: {', '.join(names)}; Ctrl-C ends it\n\n    http://127.0.0.1:{port}/{path}/\n\n"
          f"From another machine, forward the port, and open the same address there:\n\n"
          f"    ssh -N -L {port}:127.0.0.1:{port} {user}@{host}\n\n"
          "(a compute node is reached through its login node: add -J LOGIN-NODE)", flush=True)


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status. arguments: those after "watch"."""
    options = _parser().parse_args(arguments)
    for path in options.run:
        if not path.is_dir():
            print(f"analysis: '{path}' is no run directory: no such directory", file=sys.stderr)
            return 2
        if not any((path / mark).exists() for mark in MARKS):
            print(f"analysis: warning: '{path}' has none of {', '.join(MARKS)} yet", file=sys.stderr)
    message = analysis.ensure_modules(["-m", "analysis", "watch", *arguments], ("numpy", "h5py", "yaml"))
    if message is not None:
        print(message, file=sys.stderr)
        return 2
    secret = secrets.token_urlsafe(18)
    follower = Follower(options.run, options.title)
    try:
        server = _Server(("127.0.0.1", options.port), _handler(follower, secret))
    except OSError as error:
        print(f"analysis: cannot listen on 127.0.0.1:{options.port}: {error.strerror}; another --port, or none",
              file=sys.stderr)
        return 3
    try:
        _print_address(names_of(options.run), server.server_address[1], secret)
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0
