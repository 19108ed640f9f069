"""A browser driven over a pair of pipes: what a page shows, logs and asks the network for."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from conftest import PATIENCE, wait_until

PROGRAM: Final = "chromium-headless-shell"
_FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage"),
)
# The browser reads commands from descriptor 3 and writes answers to 4; a shell makes them of our two pipes.
_WITH_PIPES: Final = 'exec "$@" 3<&0 4>&1 0</dev/null 1>&2'


class Browser:
    """One page of a browser. events: what it told unasked, oldest first."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to = process.stdin
        self._from = process.stdout.fileno()
        self._read = b""
        self._asked = 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol, and give its result."""
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while (answer := self._next()).get("id") != self._asked:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._from], [], [], max(0, end - time.monotonic()))
            data = os.read(self._from, 1 << 20) if ready else b""
            assert data, "the browser ended" if ready else "the browser does not answer"
            self._read += data
        message, _, self._read = self._read.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, url: str) -> None:
        """Load a page anew, though only its fragment differs, and wait until it is complete."""
        self.ask("Page.navigate", url="about:blank")
        self.events.clear()
        self.ask("Page.navigate", url=url)
        wait_until(lambda: self.js("document.readyState === 'complete' && location.protocol !== 'about:'"))

    def js(self, expression: str) -> Any:
        """Value of an expression in the page."""
        done = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def expect(self, expression: str) -> None:
        """Wait until an expression is true."""
        wait_until(lambda: self.js(expression), expression)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.ask("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "Escape": 27}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                text=text if kind == "keyDown" else "",
                windowsVirtualKeyCode=code,
            )

    def told(self, *methods: str) -> list[Any]:
        """What it told by these events since the page was opened."""
        return [event["params"] for event in self.events if event["method"] in methods]

    @property
    def errors(self) -> list[Any]:
        """Everything the page logged or threw, and what its policy refused."""
        return self.told("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")

    @property
    def requests(self) -> list[str]:
        """Addresses it asked for."""
        return [each["request"]["url"] for each in self.told("Network.requestWillBeSent")]

    def resize(self, width: int, height: int, *, scheme: str = "light") -> None:
        """Give it a screen, light or dark."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, path: Path) -> None:
        """Write what it shows as a PNG."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(home: Path) -> Iterator[Browser]:
    """Start a browser that keeps everything it writes in `home`."""
    command = [PROGRAM, *_FLAGS, f"--user-data-dir={home}/profile", "--remote-debugging-pipe"]
    with (
        (home / "browser.log").open("wb") as log,
        subprocess.Popen(
            ["sh", "-c", _WITH_PIPES, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TZ": "UTC"},
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Browser(process)
        finally:
            with suppress(BrokenPipeError):
                process.stdin and process.stdin.close()
            try:
                process.wait(10)  # it ends with its pipe
            except subprocess.TimeoutExpired:
                process.kill()
