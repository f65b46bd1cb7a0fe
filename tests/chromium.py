"""A headless Chromium, spoken to through its debugging pipe: pages as people see them.

The pipe is two file descriptors of the browser, 3 to it and 4 from it; messages are JSON, each
ended by a zero byte (the Chrome DevTools Protocol).
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PATIENCE_S: Final = 60.0


def find() -> str | None:
    """The program, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page. `requests` are the addresses of all that it asked for."""

    def __init__(self, to: int, back: int) -> None:
        self._to = to
        self._back = back
        self._buffer = b""
        self._last_id = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._call(f"{domain}.enable")

    def open(self, file: Path, width: int, *, dark: bool = False) -> None:
        """Shows a file in a window of this width; 844 high."""
        phone = width < 600
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": phone}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self._call("Page.navigate", url=file.absolute().as_uri())
        self._until("Page.loadEventFired")

    def value(self, script: str) -> Any:
        """What a piece of JavaScript says of the page."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    def shot(self, file: Path) -> None:
        """A picture of the whole page."""
        taken = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(taken["data"]))

    def pdf(self, file: Path) -> None:
        """The page on A4."""
        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
        printed = self._call("Page.printToPDF", printBackground=True, **paper)
        file.write_bytes(base64.b64decode(printed["data"]))

    def print_width(self, width: int) -> None:
        """Shows the page as it is printed, on paper of this width in pixels."""
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        self._call("Emulation.setEmulatedMedia", media="print")

    def close_browser(self) -> None:
        """Ends it."""
        self._session = None
        self._call("Browser.close")

    def _call(self, method: str, **params: Any) -> Any:
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _until(self, method: str) -> None:
        while self._next().get("method") != method:
            pass

    def _next(self) -> dict[str, Any]:
        ends_s = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._buffer:
            if not select.select([self._back], [], [], max(0, ends_s - time.monotonic()))[0]:
                raise TimeoutError("the browser says nothing")
            piece = os.read(self._back, 1 << 20)
            if not piece:
                raise EOFError("the browser is gone")
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        if message.get("method") == "Log.entryAdded":
            self.complaints.append(message["params"]["entry"]["text"])
        return message


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Page]:
    """A browser with one page, for as long as the block lasts."""
    to_read, to = os.pipe()
    back, back_write = os.pipe()
    options = ["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"]
    options += ["--disable-background-networking", f"--user-data-dir={profile}"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    # The shell gives the descriptors the numbers that the browser expects.
    script = 'exec "$@" 3<&"$0" 4>&"$BACK"'
    with subprocess.Popen(
        ["bash", "-c", script, str(to_read), program, *options],
        pass_fds=(to_read, back_write),
        env={**os.environ, "BACK": str(back_write)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        os.close(to_read)
        os.close(back_write)
        try:
            page = Page(to, back)
            yield page
            with suppress(EOFError, OSError, TimeoutError):
                page.close_browser()
            running.wait(_PATIENCE_S)
        finally:
            if running.poll() is None:
                running.kill()
            os.close(to)
            os.close(back)
