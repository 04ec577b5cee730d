"""A real browser for tests: Chromium without a window, driven through a pipe by the DevTools protocol;
nothing but the browser is needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
ANSWER_S = 30.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "--force-color-profile=srgb",
)
KEYS = {
    "Enter": (13, "\r"),
    "Tab": (9, ""),
    "Escape": (27, ""),
    "ArrowDown": (40, ""),
    "ArrowUp": (38, ""),
    "ArrowLeft": (37, ""),
    "ArrowRight": (39, ""),
    "Home": (36, ""),
    "End": (35, ""),
    "PageDown": (34, ""),
    "PageUp": (33, ""),
    " ": (32, " "),
}


def find_browser() -> str | None:
    """The browser's program: DETECTION_ZOO_BROWSER, or the first one on the path; none where there is
    none."""
    return os.environ.get("DETECTION_ZOO_BROWSER") or next(
        (found for name in NAMES if (found := shutil.which(name))), None
    )


class Browser:
    """A running browser; use it as a context."""

    def __init__(self, program: str, profile: Path) -> None:
        down, self._down = os.pipe()  # what we say
        self._up, up = os.pipe()  # what it answers

        def connect() -> None:  # the protocol listens on 3 and answers on 4
            say, answer = fcntl.fcntl(down, fcntl.F_DUPFD, 10), fcntl.fcntl(up, fcntl.F_DUPFD, 10)
            os.dup2(say, 3)
            os.dup2(answer, 4)

        self.log = (profile / "browser.log").open("wb")
        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=connect,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        os.close(down)
        os.close(up)
        self._buffer, self._count, self.events = b"", 0, []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._down)
        os.close(self._up)
        self.log.close()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; what happens meanwhile is kept in `events`."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters} | (
            {"sessionId": session} if session else {}
        )
        os.write(self._down, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + ANSWER_S
        while True:
            answer = self._read(end, method)
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _read(self, end: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._up], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._up, 1 << 20) if ready else b""
            if not chunk:
                raise RuntimeError(
                    f"the browser {'left' if ready else 'did not answer'} at {method}; see {self.log.name}"
                )
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """One tab, with everything it asked for, said and threw since it was opened or made to forget."""

    def __init__(self, browser: Browser, **how: Any) -> None:
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.emulate(**how)

    def emulate(
        self, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False
    ) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def open(self, address: str) -> Page:
        self.call("Page.navigate", url=address)
        here = json.dumps(address.partition("#")[0])
        self.wait_for(f"document.readyState === 'complete' && location.href.split('#')[0] === {here}")
        return self

    def forget(self) -> None:
        """Drop the history and what the page did; the mouse goes to the corner."""
        self.call("Page.resetNavigationHistory")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
        self.browser.events = [one for one in self.browser.events if one.get("sessionId") != self.session]

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited; raises what it throws."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def wait_for(self, condition: str, limit_s: float = 60.0) -> None:
        """Wait, frame by frame, until a condition holds; raises TimeoutError where it never does."""
        end = time.monotonic() + limit_s
        while not self.run(f"new Promise(done => requestAnimationFrame(() => done(Boolean({condition}))))"):
            if time.monotonic() > end:
                raise TimeoutError(f"never came true: {condition}")

    def settle(self) -> None:
        """Let the page finish two frames."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def press(self, *keys: str) -> None:
        """Press keys, one after another, as a person does."""
        for key in keys:
            code, text = KEYS[key] if key in KEYS else (ord(key.upper()), key)
            known = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", **known, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **known)
        self.settle()

    def write(self, text: str) -> None:
        """Type into whatever has the focus."""
        self.call("Input.insertText", text=text)
        self.settle()

    def middle(self, selector: str) -> tuple[float, float]:
        """Where an element is on the screen, after scrolling it into sight."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block:"
            " 'nearest'}); const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height /"
            " 2]; })()"
        )
        return box[0], box[1]

    def hover(self, selector: str) -> None:
        x, y = self.middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of an element."""
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        content = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(content))

    def requests(self) -> list[str]:
        """Every address the page has asked for."""
        return [event["params"]["request"]["url"] for event in self._mine("Network.requestWillBeSent")]

    def complaints(self) -> list[str]:
        """Every error and warning of the console, every exception."""
        thrown = [
            str(event["params"]["exceptionDetails"].get("exception", {}).get("description"))
            for event in self._mine("Runtime.exceptionThrown")
        ]
        said = [
            str(event["params"]["args"])
            for event in self._mine("Runtime.consoleAPICalled")
            if event["params"]["type"] in ("error", "warning", "assert")
        ]
        logged = [
            event["params"]["entry"]["text"]
            for event in self._mine("Log.entryAdded")
            if event["params"]["entry"]["level"] in ("error", "warning")
        ]
        return thrown + said + logged

    def _mine(self, method: str) -> list[dict[str, Any]]:
        return [
            event
            for event in self.browser.events
            if event.get("method") == method and event.get("sessionId") == self.session
        ]
