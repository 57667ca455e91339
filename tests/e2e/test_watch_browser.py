"""``cloister watch`` in a real browser: Debian's Chromium, driven by Playwright, over a real run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from watched import HOSTILE, Script, hostile_run

CHROMIUM = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    # Playwright's own pipes and loop are closed by the collector, after the test.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
sync_api = pytest.importorskip("playwright.sync_api")
CLOISTER = [sys.executable, "-c", "from cloister.core.command import main; main()"]


@dataclass
class Seen:
    """What a browser did and complained of."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    loads: int = 0

    def watch(self, page: Any) -> None:
        page.on("console", lambda told: self.console.append(f"{told.type}: {told.text}"))
        page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", self._dialog)
        page.on("load", lambda _: setattr(self, "loads", self.loads + 1))

    def _dialog(self, dialog: Any) -> None:
        self.console.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def is_clean(self) -> None:
        assert self.console == []  # a violation of the Content-Security-Policy is told there
        assert {urlsplit(url).hostname for url in self.requests} == {"127.0.0.1"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield made
        made.close()


@contextmanager
def watching(path: Path, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [*CLOISTER, "watch", str(path), "--listen", "127.0.0.1:0", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = next((match for line in process.stdout if (match := re.search(r"http://\S+", line))), None)
        assert found is not None, process.stderr.read() if process.stderr else ""
        yield found[0], process
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait(20)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def until(page: Any, true: str, given: Any = None, *, seconds: float = 60.0) -> None:
    """Wait for an expression, asked from outside: the page's policy lets nobody evaluate a text inside."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(true, given):
        assert time.monotonic() < deadline, f"never true: {true}"
        page.wait_for_timeout(200)


def shoot(page: Any, name: str) -> None:
    """Keep a picture where ``CLOISTER_SHOTS`` names a folder."""
    if folder := os.environ.get("CLOISTER_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def fits(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def test_a_running_simulation_is_followed_without_a_reload(
    make_file: Callable[..., Path], tmp_path: Path, browser: Any
) -> None:
    file = make_file(
        federation={"name": "rings", "rounds": 400, "seed": 11},
        privacy={"unit": "record", "noise_multiplier": 2.0, "delta": 1e-3, "clip": 1.0, "sampling_rate": 0.1},
        training={"local_steps": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}},
    )
    runs = tmp_path / "runs"
    run = subprocess.Popen(
        [*CLOISTER, "simulate", str(file), "--out", str(runs)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with watching(runs) as (url, _):
            seen, page = Seen(), browser.new_page(viewport={"width": 1280, "height": 900})
            seen.watch(page)
            page.goto(url)
            page.get_by_role("link", name=re.compile("rings-")).click(timeout=90_000)
            page.wait_for_selector("#curves svg[role=img]", timeout=90_000)
            loads, first = seen.loads, int(page.locator("progress").get_attribute("value"))
            before = page.locator("#curves polyline").first.get_attribute("points")
            until(page, "first => Number(document.querySelector('progress').value) > first + 2", first)
            until(
                page,
                "old => document.querySelector('#curves polyline').getAttribute('points') !== old",
                before,
            )
            assert page.locator("h1 .pill").inner_text() == "running"
            assert page.get_by_text("Time left").is_visible()
            page.wait_for_selector("#privacy figure svg[role=img] polyline.dash", timeout=90_000)
            page.locator("#curves details", has_text="Table").first.locator("summary").click()
            page.wait_for_selector("#curves details[open] table tbody tr")
            page.wait_for_timeout(2500)
            assert page.locator("#curves details[open]").count() == 1  # an update leaves it open
            shoot(page, "running-light")
            page.emulate_media(color_scheme="dark")
            shoot(page, "running-dark")
            page.emulate_media(color_scheme="light")
            run.send_signal(signal.SIGINT)
            until(page, "() => document.querySelector('h1 .pill').textContent === 'interrupted'")
            assert seen.loads == loads
            page.set_viewport_size({"width": 400, "height": 800})
            assert fits(page)
            shoot(page, "interrupted-narrow")
            seen.is_clean()
            page.close()
    finally:
        run.kill()
        run.wait(20)
        assert run.stderr is not None
        run.stderr.close()


def test_hostile_names_are_shown_and_nothing_of_them_runs(tmp_path: Path, browser: Any) -> None:
    hostile_run(tmp_path / "run")
    with watching(tmp_path / "run") as (url, _):
        for scheme, width in (("light", 1280), ("dark", 1280), ("light", 400)):
            seen, page = (
                Seen(),
                browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme),
            )
            seen.watch(page)
            page.goto(url)
            page.wait_for_selector("#sites table")
            for one in page.locator("summary").all():
                one.click()
            page.wait_for_timeout(500)
            assert page.locator("#sites th", has_text=HOSTILE[0]).count() == 1
            assert page.locator("img, script:not([src])").count() == 0
            assert page.locator("main [onerror], main [onmouseover], main [style]").count() == 0
            assert fits(page)
            shoot(page, f"failed-{scheme}-{width}")
            seen.is_clean()
            page.close()


def test_the_policy_forbids_what_an_injection_would_need(tmp_path: Path, browser: Any) -> None:
    Script(tmp_path / "run").begin()
    with watching(tmp_path / "run") as (url, _):
        seen, page = Seen(), browser.new_page()
        seen.watch(page)
        page.goto(url)
        page.wait_for_selector("h1")
        page.evaluate(
            "() => { const one = document.createElement('script'); one.textContent = 'window.hit = 1'; document.body.append(one); }"
        )
        assert page.evaluate("window.hit") is None
        assert page.evaluate("fetch('http://127.0.0.2/').then(() => 'sent', () => 'refused')") == "refused"
        for _ in range(200):  # what the page says comes when the browser has time
            if sum("Content Security Policy" in line for line in seen.console) >= 2:
                break
            page.wait_for_timeout(100)
        else:
            pytest.fail(f"both are refused by the policy: {seen.console}")
        page.close()


def test_a_token_opens_the_page_and_stays_out_of_the_address(tmp_path: Path, browser: Any) -> None:
    script = Script(tmp_path / "run")
    script.begin()
    script.round(1)
    token = tmp_path / "token"
    with watching(tmp_path / "run", "--token-file", str(token)) as (url, _):
        seen, page = Seen(), browser.new_page()
        seen.watch(page)
        assert token.read_text().strip() not in url
        page.goto(url)
        shoot(page, "token")
        page.get_by_label("Token").fill(token.read_text().strip())
        page.get_by_role("button").click()
        page.wait_for_selector("#sites table")
        assert page.url == url
        assert page.evaluate("document.cookie") == ""
        # Chromium tells of the first answer, 403, on its console.
        assert [line for line in seen.console if "403" not in line] == []
        page.close()


def test_a_plot_is_read_by_keyboard_and_the_page_goes_on_when_the_watcher_comes_back(
    tmp_path: Path, browser: Any
) -> None:
    script = Script(tmp_path / "run", rounds=9)
    script.begin()
    for number in (1, 2, 3):
        script.round(number)
    with watching(tmp_path / "run") as (url, _):
        page = browser.new_page()
        page.goto(url)
        plot = page.locator("#curves svg[role=img]").first
        plot.focus()
        page.keyboard.press("ArrowLeft")
        assert (
            "round 2: " in page.locator("#curves .readout").first.inner_text()
            or "round 3: " in page.locator("#curves .readout").first.inner_text()
        )
        assert "Accuracy, by round" in (plot.get_attribute("aria-label") or "")
        assert page.locator("h1 .pill").inner_text() == "stopped without an end"
    until(page, "() => document.getElementById('link').textContent.includes('does not answer')")
    port = str(urlsplit(url).port)
    with watching(tmp_path / "run", "--listen", f"127.0.0.1:{port}"):
        until(page, "() => document.getElementById('link').textContent === ''")
    page.close()
