"""A watcher: what it reads, what it keeps, whom it lets look."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from cloister.core.errors import CloisterError, UsageError
from cloister.server.events import read_events
from cloister.server.folding import Fold
from cloister.server.watching.access import Access, is_loopback, token_from
from cloister.server.watching.book import Book
from cloister.server.watching.command import _bound
from cloister.server.watching.curve import Curve
from cloister.server.watching.feed import Feed
from cloister.server.watching.listing import Listing
from cloister.server.watching.pages import HEADERS, Pages, application
from cloister.server.watching.place import PlaceWatch
from cloister.server.watching.run_watch import RunWatch
from cloister.server.watching.standing import is_held, state_of
from cloister.server.watching.tail import Tail
from watched import HOSTILE, Script, hostile_run

TOKEN = "t" * 32


def line(number: int, kind: str = "warning", **more: object) -> str:
    return json.dumps({"round": number, "kind": kind, "text": f"number {number}", **more}) + "\n"


# ---- reading


def test_a_read_returns_what_is_new_and_a_torn_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert not tail.read().there
    path.write_text(line(1) + line(2)[:10])
    assert [event["round"] for event in tail.read().events] == [1]
    assert tail.read().events == ()
    with path.open("a") as file:
        file.write(line(2)[10:] + line(3))
    read = tail.read()
    assert [event["round"] for event in read.events] == [2, 3]
    assert not read.restarted


@pytest.mark.parametrize("how", ["cut", "cut and grown beyond", "replaced", "removed"])
def test_a_file_that_was_cut_or_replaced_is_read_anew(tmp_path: Path, how: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line(1) + line(2) + line(3))
    tail = Tail(path)
    tail.read()
    if how == "cut":
        os.truncate(path, len(line(1)))
        expected = [1]
    elif how == "cut and grown beyond":
        os.truncate(path, len(line(1)))
        with path.open("a") as file:
            file.write("".join(line(number) for number in (5, 6, 7, 8)))
        expected = [1, 5, 6, 7, 8]
    elif how == "replaced":
        (tmp_path / "new").write_text(line(1) + line(2) + line(3))
        (tmp_path / "new").replace(path)
        expected = [1, 2, 3]
    else:
        path.unlink()
        expected = []
    read = tail.read()
    assert read.restarted
    assert [event["round"] for event in read.events] == expected


def test_lines_that_are_no_events_are_counted_and_a_long_one_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    bad = [
        "no json\n",
        "[1]\n",
        '{"kind":1,"round":1}\n',
        '{"kind":"x","round":true}\n',
        '{"kind":"x","round":NaN}\n',
        "[" * 900 + "\n",
    ]
    path.write_text("".join([line(1), *bad, "x" * 5000 + "\n", line(2)]))
    tail, found, unreadable = Tail(path, most=1000), [], 0
    for _ in range(20):
        read = tail.read()
        assert sum(len(json.dumps(event)) for event in read.events) <= 1000
        found += [event["round"] for event in read.events]
        unreadable += read.unreadable
    assert found == [1, 2]
    assert unreadable == len(bad) + 1


def test_a_pipe_of_that_name_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.jsonl")
    assert not Tail(tmp_path / "events.jsonl").read().there


# ---- keeping


def test_a_book_adds_up_to_what_the_whole_history_does(tmp_path: Path) -> None:
    script = Script(tmp_path / "run", rounds=9)
    script.begin()
    script.site(1, "a")  # an attempt that did not count
    for number in range(1, 8):
        script.round(
            number,
            refused={"b": "not-finite: x"} if number % 3 == 0 else {},
            missing=("c",) if number % 2 else (),
        )
    history, book = Fold.of(read_events(script.path)).history(), Book()
    for event in read_events(script.path):
        book.add(event)
    assert {name: site.total for name, site in book.sites.items()} == dict(history.sites)
    assert dict(book.refusals) == history.refused_by_reason == {"not-finite": 2}
    assert book.seconds == pytest.approx({phase: value for phase, value in history.seconds.items() if value})
    assert book.metrics["accuracy", "central"].points() == [
        (point.round, point.metrics["accuracy"]) for point in history.series["central"].points
    ]
    assert book.total_down == sum(one.bytes_down for one in history.rounds)


def test_rounds_that_a_resume_takes_back_do_not_count(tmp_path: Path) -> None:
    script = Script(tmp_path / "run", rounds=6)
    script.begin()
    for number in (1, 2, 3):
        script.round(number, missing=("a",))
    script.begin(resumed_from=1)
    for number in (2, 3, 4):
        script.round(number)
    watch = RunWatch(tmp_path / "run")
    while watch.refresh():
        pass
    history = Fold.of(read_events(script.path)).history()
    assert {name: site.total for name, site in watch.book.sites.items()} == dict(history.sites)
    assert watch.book.sites["a"].total.missing == 1
    assert [number for number, _ in watch.book.loss.points()] == [1, 2, 3, 4]


def test_a_resume_that_cuts_the_file_is_followed(tmp_path: Path) -> None:
    script = Script(tmp_path / "run", rounds=4)
    script.begin()
    script.round(1)
    place = script.path.stat().st_size
    script.round(2, missing=("a",))
    script.end("interrupted")
    watch = RunWatch(tmp_path / "run")
    watch.refresh()
    assert watch.sections()["head"]["state"] == "interrupted"
    os.truncate(script.path, place)
    script.round(2)
    watch.refresh()
    found = watch.sections()
    assert found["progress"]["round"] == 2
    assert all(one["missing"] == 0 for one in found["sites"]["listed"])


def test_a_curve_keeps_few_points_evenly_and_the_newest() -> None:
    curve = Curve(most=50)
    for number in range(1, 10_001):
        curve.add(number, float(number))
    points = curve.points()
    assert len(points) <= 52
    assert points[-1] == (10_000, 10_000.0)
    gaps = {b - a for (a, _), (b, _) in pairwise(points[:-1])}
    assert len(gaps) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr("cloister.server.watching.book.ROUNDS", 200)

    def feed(book: Book, first: int, last: int) -> None:
        for number in range(first, last):
            for name in "abcdefgh":
                book.add(
                    {
                        "kind": "site",
                        "round": number,
                        "site": name,
                        "phase": "train",
                        "status": "refused",
                        "reason": f"x{number}: y",
                    }
                )
                book.add(
                    {
                        "kind": "evaluation",
                        "round": number,
                        "where": f"site:{name}",
                        "loss": 1.0,
                        "metrics": {"accuracy": 0.5},
                        "records": 9,
                    }
                )
            book.add({"kind": "warning", "round": number, "text": f"warning {number}"})
            book.add({"kind": "privacy", "round": number, "epsilon": number / 1e4})
            book.add(
                {"kind": "round", "round": number, "cohort": 8, "answered": 0, "seconds": {"train": 1.0}}
            )

    book = Book()
    feed(book, 1, 700)
    tracemalloc.start()
    feed(book, 700, 1400)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        grown < 1_200_000
    )  # curves, between two thinnings; a kept answer of each site and round would be several times that


@pytest.mark.parametrize(
    ("begun", "end", "held", "silent", "state"),
    [
        (False, None, None, None, "waiting"),
        (True, "done", False, 5.0, "done"),
        (True, "odd", True, 5.0, "failed"),
        (True, None, True, 9e9, "running"),
        (True, None, False, 0.1, "stopped"),
        (True, None, None, 5.0, "running"),
        (True, None, None, 9e9, "quiet"),
    ],
)  # fmt: skip
def test_the_state_of_a_run(
    begun: bool, end: str | None, held: bool | None, silent: float | None, state: str
) -> None:
    assert state_of(begun=begun, end=end, held=held, silent_s=silent) == state


def test_asking_whether_a_run_is_held_takes_no_lock(tmp_path: Path) -> None:
    script = Script(tmp_path / "run")
    script.begin()
    held = script.hold()
    ask = "import sys; from pathlib import Path; from cloister.server.watching.standing import is_held; print(is_held(Path(sys.argv[1])))"

    def answer() -> str:
        return subprocess.run(
            [sys.executable, "-c", ask, script.path.parent], capture_output=True, text=True, check=True
        ).stdout.strip()

    assert answer() == "True"
    os.close(held)
    assert answer() == "False"
    assert is_held(tmp_path / "nothing") is None


def test_nothing_in_the_folder_is_written(tmp_path: Path) -> None:
    hostile_run(tmp_path / "run")

    def look() -> dict[Path, tuple[int, int]]:
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size)
            for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]
        }

    before, watch = look(), RunWatch(tmp_path / "run")
    watch.refresh()
    watch.sections()
    assert look() == before


def test_a_site_that_is_not_heard_of_yet_is_awaited_and_time_left_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(tmp_path / "run", rounds=10)
    script.begin()
    for number in (1, 2, 3):
        script.round(number)
    script.site(4, "b")
    watch = RunWatch(tmp_path / "run", clock=lambda: script.time)
    watch.refresh()
    # A lock of this very process is not seen by it.
    monkeypatch.setattr("cloister.server.watching.run_watch.is_held", lambda _: True)
    found = watch.sections()
    assert found["progress"]["heard"] == 1
    assert found["progress"]["asked"] == 3
    assert sorted(found["sites"]["awaited"]) == ["a", "c"]
    assert found["progress"]["left_s"] == pytest.approx(7 * found["progress"]["pace_s"] - 0.5, abs=0.1)


# ---- a folder of runs


def test_a_folder_of_runs_is_listed_with_states_and_never_leads_elsewhere(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name, status in (("one", "done"), ("two", "failed")):
        script = Script(runs / name)
        script.begin()
        script.round(1)
        script.end(status)
    Script(tmp_path / "secret").begin()
    (runs / "link").symlink_to(tmp_path / "secret")
    (runs / "ledgers").mkdir()
    listing = Listing(runs)
    listing.refresh()
    rows = listing.sections()["runs"]["rows"]
    assert {(row["key"], row["state"], row["round"]) for row in rows} == {
        ("one", "done", 1),
        ("two", "failed", 1),
    }
    for name in ("link", "..", ".", "../secret", "", "ledgers", "one\0", "a" * 5000):
        assert listing.run(name) is None


def test_a_path_without_a_run_waits_and_becomes_what_turns_up(tmp_path: Path) -> None:
    watch = PlaceWatch(tmp_path / "runs")
    watch.refresh()
    assert watch.sections()["head"]["state"] == "waiting"
    Script(tmp_path / "runs" / "one").begin()
    watch.refresh()
    assert [row["key"] for row in watch.sections()["runs"]["rows"]] == ["one"]
    other = PlaceWatch(tmp_path / "run")
    other.refresh()
    Script(tmp_path / "run").begin()
    other.refresh()
    assert other.sections()["head"]["name"] == "heart"


# ---- who may look


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8866", "localhost:1", "[::1]:8866", "LOCALHOST", "localhost."]
)
def test_loopback_names_are_ours_on_any_port(host: str) -> None:
    assert Access().is_ours(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8866",
        "127.0.0.1.evil.example",
        "10.0.0.7:8866",
        "",
        "localhost@evil",
        "[::2]",
    ],
)
def test_other_names_are_not(host: str) -> None:
    assert not Access().is_ours(host)


def test_beyond_loopback_addresses_are_ours_and_names_only_where_given() -> None:
    access = Access(token=TOKEN, names=frozenset({"watch.hospital.example"}), addresses=True)
    assert access.is_ours("10.0.0.7:8866")
    assert access.is_ours("watch.hospital.example:8866")
    assert not access.is_ours("evil.example")
    assert is_loopback("127.0.0.9")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("hospital.example")


def test_a_token_file_is_made_for_its_owner_alone_and_a_loose_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token, made = token_from(path)
    assert not made
    assert path.stat().st_mode & 0o777 == 0o600
    assert token_from(path) == (token, False)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="others than its owner") as refused:
        token_from(path)
    assert token not in refused.value.message
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(UsageError, match="at least 24"):
        token_from(path)
    with pytest.raises(CloisterError):
        token_from(tmp_path / "no" / "folder")
    assert token_from(None)[0] != token_from(None)[0]


class Visitor:
    """A browser without a page: keeps cookies, follows nothing."""

    def __init__(self, path: Path, *, token: str | None = None) -> None:
        self._runner = asyncio.Runner()
        app = application(Pages(path, period_s=0.05), Access(token=token))
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://127.0.0.1:8866",  # type: ignore[arg-type,unused-ignore]
        )
        self.cookies = self._client.cookies

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def ask(self, method: str, address: str, **more: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, address, **more))

    def get(self, address: str, **more: Any) -> httpx.Response:
        return self.ask("GET", address, **more)

    def post(self, address: str, **more: Any) -> httpx.Response:
        return self.ask("POST", address, **more)


def test_every_answer_carries_the_headers_and_no_page_has_anything_inline(tmp_path: Path) -> None:
    hostile_run(tmp_path / "run")
    with Visitor(tmp_path / "run") as visitor:
        for address in ("/", "/snapshot.json", "/static/watch.js", "/nothing", "/runs/x"):
            answer = visitor.get(address)
            assert {key: answer.headers[key] for key in HEADERS} == HEADERS
        page = visitor.get("/").text
        assert "style=" not in page
        assert "<script>" not in page
        assert "http" not in page
        assert visitor.post("/").status_code == 405
        assert visitor.ask("DELETE", "/snapshot.json").status_code == 405
        assert visitor.get("/static/../pages.py").status_code == 404
        assert visitor.get("/static/%2e%2e/pages.py").status_code == 404


def test_a_foreign_host_name_or_page_reads_nothing(tmp_path: Path) -> None:
    Script(tmp_path / "run").begin()
    with Visitor(tmp_path / "run") as visitor:
        for headers in (
            {"host": "evil.example"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
        ):
            answer = visitor.get("/snapshot.json", headers=headers)
            assert answer.status_code == 403
            assert "heart" not in answer.text
        assert (
            visitor.get(
                "/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
            ).status_code
            == 200
        )


def test_a_token_opens_once_and_the_cookie_from_then_on(tmp_path: Path) -> None:
    Script(tmp_path / "run").begin()
    with Visitor(tmp_path / "run", token=TOKEN) as visitor:
        for address in ("/", "/snapshot.json", "/stream", f"/?token={TOKEN[:-1]}", "/?token="):
            answer = visitor.get(address)
            assert answer.status_code == 403
            assert "heart" not in answer.text
        assert visitor.get("/static/watch.css").status_code == 200
        answer = visitor.get(f"//evil.example/?token={TOKEN}&x=1")
        assert (answer.status_code, answer.headers["location"]) in {
            (303, "/evil.example/?x=1"),
            (303, "/?x=1"),
        }
        answer = visitor.get(f"/?token={TOKEN}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        given = answer.headers["set-cookie"]
        assert "httponly" in given.lower()
        assert "samesite=strict" in given.lower()
        assert TOKEN not in given
        assert visitor.get("/snapshot.json").json()["head"]["name"] == "heart"
        visitor.cookies.clear()
        assert visitor.get("/snapshot.json", headers={"cookie": "cloister-watch=wrong"}).status_code == 403
        assert visitor.post("/enter", data={"token": "wrong"}).status_code == 403
        assert visitor.post("/enter", data={"token": "x" * 9000}).status_code == 403
        assert visitor.post("/enter", data={"token": TOKEN}).status_code == 303
        assert visitor.get("/snapshot.json").status_code == 200


def test_hostile_names_are_cut_and_lose_their_control_characters(tmp_path: Path) -> None:
    hostile_run(tmp_path / "run")
    with Visitor(tmp_path / "run") as visitor:
        text = visitor.get("/snapshot.json").text
    found = json.loads(text)
    assert found["head"]["state"] == "failed"
    assert {one["site"] for one in found["sites"]["listed"]} >= {HOSTILE[0], HOSTILE[2]}
    assert "\u202e" not in text
    assert "\\u202e" not in text
    assert "\\u001b" not in text
    assert "n" * 60 not in text
    assert found["refused"]["by_reason"] == [["not-finite", 4]]
    assert {one["verdict"] for one in found["audits"]} >= {"pass", "unreadable"}
    assert found["signals"]["alerts"][0]["who"] == HOSTILE[0]


def test_the_stream_sends_everything_once_and_then_what_changed(tmp_path: Path) -> None:
    script = Script(tmp_path / "run", rounds=9)
    script.begin()
    script.round(1)

    async def look() -> list[dict[str, object]]:
        feed, stopping, found = Feed(RunWatch(tmp_path / "run"), period_s=0.05), asyncio.Event(), []
        async for chunk in feed.stream(stopping):
            if b"data: " in chunk:
                found.append(json.loads(chunk.split(b"data: ")[1]))
                if len(found) == 1:
                    script.emit("warning", 1, text="something")
                if "warnings" in found[-1] and len(found) > 1:
                    stopping.set()
        return found

    first, *rest = asyncio.run(asyncio.wait_for(look(), 20))
    assert {"head", "progress", "sites", "curves", "warnings"} <= first.keys()
    assert rest[-1]["warnings"] == ["something"]
    assert all("curves" not in one for one in rest)


def test_many_viewers_cost_one_reader(tmp_path: Path) -> None:
    class Counted:
        reads = 0

        def refresh(self) -> bool:
            self.reads += 1
            return False

        def sections(self, *, wait_s: float = 0.0) -> dict[str, object]:
            return {"head": {"reads": self.reads}}

    async def look() -> int:
        counted, stopping = Counted(), asyncio.Event()
        feed = Feed(counted, period_s=0.1)

        async def viewer() -> None:
            async for _ in feed.stream(stopping):
                pass

        viewers = [asyncio.create_task(viewer()) for _ in range(100)]
        await asyncio.sleep(1.0)
        stopping.set()
        await asyncio.gather(*viewers)
        return counted.reads

    assert asyncio.run(look()) <= 13


def test_a_run_that_is_watched_to_its_end_stays_on_the_page(tmp_path: Path) -> None:
    script = Script(tmp_path / "run", rounds=1)
    with Visitor(tmp_path / "run") as visitor:
        script.begin()
        script.round(1)
        script.end()
        found = visitor.get("/snapshot.json").json()
        assert found["head"]["state"] == "done"
        assert found["progress"]["round"] == found["progress"]["rounds"] == 1
        assert found["curves"]["lead"][0]["text"] == "54.0%"


def test_a_refusal_that_only_the_round_tells_of_is_told_once() -> None:
    book = Book()
    told = {"site": "a", "reason": "not-finite: x"}
    site = {
        "kind": "site",
        "round": 1,
        "site": "a",
        "phase": "train",
        "status": "refused",
        "reason": "not-finite: x",
    }
    one = {"kind": "round", "cohort": 2, "answered": 1, "refused": [told]}
    for event in (site, {**one, "round": 1}, {**one, "round": 2}):
        book.add(event)
    assert [refused.round for refused, _ in book.refused] == [1, 2]
    assert book.sites["a"].total.refused == 2


def test_who_reads_the_page_s_address_may_open_it_at_once() -> None:
    with closing(_bound("127.0.0.1", 0)) as bound, socket.create_connection(bound.getsockname(), timeout=5):
        pass
