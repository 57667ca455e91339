"""The round loop over a real Flower grid: honest sites, hostile sites, lost sites. No mock: the real apps on both sides."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from cloister.client.app import Site, Workbench, make_client_app, refusal
from cloister.client.trainer import Trainer
from cloister.core import Layout, SeededRandomness, Split, Task, TensorData, protocol
from cloister.core.errors import DataError, PeersMissing, PolicyError
from cloister.core.resolve import build_model
from cloister.core.spec import parse_federation
from cloister.privacy.request import SignedRequest
from cloister.server.app import make_server_app
from cloister.server.checkpoints import CheckpointStore
from cloister.server.directory import ComputedDirectory
from cloister.server.events import EventBus, EventLog, read_events
from cloister.server.plan import RunPlan
from cloister.simulation.live_array import LiveArray
from cloister.simulation.local_grid import LocalGrid, client_runner
from cloister.simulation.workers import Inline

SITES = 4
NAMES = ("ann", "bob", "cy", "dee")


class Line(Task):
    """Two classes on either side of a line; each site's records differ."""

    classes = ("left", "right")

    def model(self) -> nn.Module:
        return nn.Linear(2, 2)

    def data(self) -> dict[str, Split]:
        made = {}
        for number, name in enumerate(NAMES):
            x = torch.randn(20 + 5 * number, 2, generator=torch.Generator().manual_seed(number))
            data = TensorData(x, (x[:, 0] > 0).long())
            made[name] = Split(data, data)
        return made


class Sites:
    """Static sites, without a partition."""

    def __init__(self, federation: str) -> None:
        spec = parse_federation(json.loads(federation), base=Path()).spec
        task = Line()
        model = build_model(task, 0)
        self.bench = Workbench(
            spec=spec, trainer=Trainer(spec, task, model, Layout.of(model)), randomness=SeededRandomness(0)
        )
        self.splits = task.data()

    def workbench(self, federation: str) -> Workbench:
        return self.bench

    def site(self, context: Context, bench: Workbench) -> Site:
        name = NAMES[int(context.node_config["partition-id"])]
        return Site(name=name, split=self.splits[name])


class Federation:
    """A run over the local grid whose ClientApp may be wrapped by a hostile one."""

    def __init__(self, folder: Path, **tables: dict[str, Any]) -> None:
        aggregation = {"protection": "plain", **tables.pop("aggregation", {})}
        document = {
            "federation": {"name": "t", "rounds": 2},
            "task": {"use": "line"},
            "aggregation": aggregation,
            **tables,
        }
        self.loaded = parse_federation(document, base=Path())
        self.folder = folder
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.sites = Sites(json.dumps(self.loaded.effective()))
        self.hostile: dict[str, Callable[[Message, Message], Message]] = {}
        self.request: SignedRequest | None = None

    def run(self) -> np.ndarray[Any, Any]:
        honest = make_client_app(self.sites)
        app = ClientApp()

        def through(message: Message, context: Context) -> Message:
            reply = honest(message, context)
            name = NAMES[int(context.node_config["partition-id"])]
            return self.hostile[name](message, reply) if name in self.hostile else reply

        app.train()(through)
        app.evaluate()(through)
        app.query()(through)
        grid = LocalGrid(
            nodes=SITES,
            node_config=lambda node: {"partition-id": node - 1},
            workers=Inline(lambda: client_runner(app)),
        )
        layout = self.sites.bench.trainer.layout
        bus = EventBus(EventLog(self.folder / "events.jsonl"))
        plan = RunPlan(
            loaded=self.loaded,
            layout=layout,
            initial=layout.read(build_model(Line(), 0)),
            classes=2,
            randomness=SeededRandomness(0),
            bus=bus,
            store=CheckpointStore(self.folder / "checkpoints"),
            central=None,
            make_array=LiveArray,
            request=self.request,
        )
        models: list[np.ndarray[Any, Any]] = []
        directory = ComputedDirectory(size=SITES, name_of=lambda i: NAMES[i])
        server = make_server_app(plan, lambda _: directory, models.append)
        try:
            server(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))
        finally:
            grid.close()
            bus.close()
        return models[0]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder / "events.jsonl") if event["kind"] == kind]


def changed(reply: Message, message: Message, **arrays: Any) -> Message:
    content = RecordDict(
        {
            protocol.UPDATE: ArrayRecord(arrays),
            protocol.REPORT: MetricRecord({"loss": 0.1, "records": 5, "steps": 1}),
        }
    )
    return Message(content, reply_to=message)


def vector_of(reply: Message) -> Any:
    return reply.content.array_records[protocol.UPDATE][protocol.VECTOR].numpy().copy()


def with_nan(message: Message, reply: Message) -> Message:
    vector = vector_of(reply)
    vector[1] = np.nan
    return changed(reply, message, vector=Array(vector))


def wrong_length(message: Message, reply: Message) -> Message:
    return changed(reply, message, vector=Array(vector_of(reply)[:-1]))


def wrong_type(message: Message, reply: Message) -> Message:
    return changed(reply, message, vector=Array(vector_of(reply).astype(np.float64)))


def lying_header(message: Message, reply: Message) -> Message:
    """Says float32 of the right shape and carries something else."""
    array = Array(np.ones(10**5))
    array.dtype, array.shape = "float32", vector_of(reply).shape
    return changed(reply, message, vector=array)


def pickled_bytes(message: Message, reply: Message) -> Message:
    shape = vector_of(reply).shape
    return changed(
        reply, message, vector=Array("float32", shape, "numpy.ndarray", b"\x93NUMPY\x01\x00garbage")
    )


def raw_bytes(data: bytes) -> Callable[[Message, Message], Message]:
    """Bytes that NumPy's own reader would take for a ZIP archive, or evaluate."""

    def attack(message: Message, reply: Message) -> Message:
        return changed(reply, message, vector=Array("float32", vector_of(reply).shape, "numpy.ndarray", data))

    return attack


def trailing_bytes(message: Message, reply: Message) -> Message:
    array = Array(vector_of(reply))
    return changed(reply, message, vector=Array(array.dtype, array.shape, array.stype, array.data + b"more"))


def too_large(message: Message, reply: Message) -> Message:
    """Finite, and enough to leave float32's range once it is added."""
    vector = vector_of(reply)
    vector[0] = 3.4e38
    return changed(reply, message, vector=Array(vector))


def extra_record(message: Message, reply: Message) -> Message:
    made = changed(reply, message, vector=Array(vector_of(reply)))
    made.content["more"] = ConfigRecord({"text": "x" * 10**6})
    return made


def extra_array(message: Message, reply: Message) -> Message:
    return changed(reply, message, vector=Array(vector_of(reply)), more=Array(vector_of(reply)))


def no_report(message: Message, reply: Message) -> Message:
    return Message(
        RecordDict({protocol.UPDATE: ArrayRecord({"vector": Array(vector_of(reply))})}), reply_to=message
    )


def flower_error(message: Message, reply: Message) -> Message:
    return Message(Error(code=0, reason="secret patient text"), reply_to=message)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (with_nan, "not-finite"),
        (wrong_length, "wrong-shape"),
        (wrong_type, "wrong-shape"),
        (lying_header, "unreadable"),
        (pickled_bytes, "unreadable"),
        (extra_array, "wrong-arrays"),
        (no_report, "wrong-records"),
        (raw_bytes(b"PK\x03\x04" + b"x" * 30), "unreadable"),
        (raw_bytes(b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16), "unreadable"),
        (raw_bytes(b"\x93NUMPY\x01\x00\x00\x20" + b"1+" * 4096), "unreadable"),
        (trailing_bytes, "unreadable"),
        (too_large, "too-large"),
        (extra_record, "wrong-records"),
    ],
)
def test_a_bad_reply_is_refused_with_a_reason_and_the_round_goes_on_without_it(
    attack: Any, reason: str, tmp_path: Path
) -> None:
    federation = Federation(tmp_path / "hostile", evaluation={"sites": False, "every": 0})
    federation.hostile = {"bob": attack}
    model = federation.run()
    for event in federation.events("round"):
        assert event["answered"] == 3
        assert [one["site"] for one in event["refused"]] == ["bob"]
        assert event["refused"][0]["reason"].startswith(reason)
    # The same as a federation in which bob's word never arrived.
    without = Federation(tmp_path / "without", evaluation={"sites": False, "every": 0})
    without.hostile = {"bob": flower_error}
    assert np.array_equal(model, without.run())
    honest = Federation(tmp_path / "honest", evaluation={"sites": False, "every": 0})
    assert not np.array_equal(model, honest.run())


@pytest.mark.parametrize("busy", [2, 3])
def test_a_busy_site_is_away_where_enough_others_are_there_and_else_the_run_waits(
    tmp_path: Path, busy: int
) -> None:
    federation = Federation(tmp_path, cohort={"min_sites": 2}, evaluation={"sites": False, "every": 0})
    federation.request = SignedRequest(encoded=b"{}", signature=b"", certificate=b"")

    def asks_to_wait(message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "query":
            return reply
        return Message(refusal("wait-busy", "another run is under way at this site"), reply_to=message)

    federation.hostile = dict.fromkeys(NAMES[:busy], asks_to_wait)
    if busy == 2:
        federation.run()
        assert [event["answered"] for event in federation.events("round")] == [4, 4], "asked with each round"
        assert "busy with another run" in federation.events("warning")[0]["text"]
        return
    with pytest.raises(PolicyError) as caught:
        federation.run()
    assert caught.value.code == "wait-busy"
    assert not federation.events("round")


def test_a_sites_exception_never_sends_its_text(tmp_path: Path) -> None:
    federation = Federation(tmp_path)

    def explode(*_: Any) -> Any:
        raise RuntimeError("Jane Doe, born 1950, HIV positive")

    federation.sites.splits["cy"] = Split(
        federation.sites.splits["cy"].train, federation.sites.splits["cy"].test
    )
    object.__setattr__(federation.sites.splits["cy"].train, "batch", explode)
    federation.run()
    text = (tmp_path / "events.jsonl").read_text()
    assert "site-failed: the site's code raised RuntimeError" in text
    assert "Jane" not in text


@pytest.mark.parametrize("error", [DataError("Jane Doe, born 1950"), SystemExit("Jane Doe")])
def test_a_task_cannot_speak_through_our_own_errors(tmp_path: Path, error: BaseException) -> None:
    federation = Federation(tmp_path)

    def explode(*_: Any) -> Any:
        raise error

    object.__setattr__(federation.sites.splits["cy"].train, "batch", explode)
    federation.run()
    text = (tmp_path / "events.jsonl").read_text()
    assert f"site-failed: the site's code raised {type(error).__name__}" in text
    assert "Jane" not in text


LIES: dict[str, dict[str, Any]] = {
    "accuracy beyond its range": {"metric.accuracy": 1e300},
    "a negative accuracy": {"metric.accuracy": -7.0},
    "a metric of its own": {"metric.x\x1b[2J": 0.5},
    "a name as long as a book": {"metric." + "x" * 10**6: 0.5},
    "a metric of another kind of task": {"metric.r2": 0.5},
    "a matrix that counts other records": {"confusion": [5, 5, 5, 5]},
    "a loss that is no number": {"loss": float("nan")},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=list(LIES))
def test_a_measurement_that_cannot_be_true_is_refused_and_not_averaged(
    tmp_path: Path, lie: dict[str, Any]
) -> None:
    federation = Federation(tmp_path, federation={"name": "t", "rounds": 1})

    def lying(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "evaluate":
            reply.content.metric_records[protocol.REPORT].update(lie)
        return reply

    federation.hostile = {"bob": lying}
    federation.run()
    refused = [
        event
        for event in federation.events("site")
        if event["phase"] == "evaluate" and event["status"] == "refused"
    ]
    assert [event["site"] for event in refused] == ["bob"]
    assert {event["where"] for event in federation.events("evaluation")} == {
        "sites",
        "site:ann",
        "site:cy",
        "site:dee",
    }
    assert (tmp_path / "events.jsonl").stat().st_size < 20_000


def test_a_small_poisson_draw_is_drawn_again_and_is_no_failure(tmp_path: Path) -> None:
    tables: dict[str, dict[str, Any]] = {
        "cohort": {"per_round": {"poisson": 0.1}, "min_sites": 1},
        "evaluation": {"sites": False, "every": 0},
    }
    federation = Federation(tmp_path, federation={"name": "t", "rounds": 12}, **tables)
    federation.run()
    assert len(federation.events("round")) == 12
    assert not federation.events("warning")


def test_a_cohort_that_is_never_large_enough_says_so(tmp_path: Path) -> None:
    federation = Federation(tmp_path, cohort={"per_round": {"poisson": 1e-9}, "min_sites": 4})
    with pytest.raises(PeersMissing, match="did not draw min_sites = 4") as refused:
        federation.run()
    assert "per_round" in refused.value.remedy


def test_flowers_error_text_is_not_kept(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.hostile = {"ann": flower_error}
    federation.run()
    assert "secret patient text" not in (tmp_path / "events.jsonl").read_text()
    assert federation.events("round")[0]["refused"] == [
        {"site": "ann", "reason": "site-lost: Flower error 0"}
    ]


def test_a_reply_from_a_foreign_sender_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, evaluation={"sites": False, "every": 0})
    original = LocalGrid.pull_messages

    def pull(self: LocalGrid, message_ids: Any) -> Any:
        for reply in original(self, message_ids):
            if reply.metadata.src_node_id == 2:
                reply.metadata.__dict__["_src_node_id"] = 77
            yield reply

    LocalGrid.pull_messages = pull  # type: ignore[method-assign]
    try:
        federation.run()
    finally:
        LocalGrid.pull_messages = original  # type: ignore[method-assign]
    assert federation.events("round")[0]["refused"][0]["site"] == "bob"
    assert federation.events("round")[0]["refused"][0]["reason"].startswith("foreign-sender")


def test_all_sites_lost_ends_with_peers_missing_and_names_them(tmp_path: Path) -> None:
    federation = Federation(tmp_path, cohort={"min_sites": 2})
    federation.hostile = dict.fromkeys(NAMES, flower_error)
    with pytest.raises(PeersMissing, match=r"ann .*bob .*cy .*dee") as refused:
        federation.run()
    assert refused.value.exit_code == 6
    assert "resume" in refused.value.remedy
    assert CheckpointStore(tmp_path / "checkpoints").newest(
        digest=federation.loaded.digest(), layout=federation.sites.bench.trainer.layout.digest
    ), "the run must stay resumable"


def test_a_straggler_is_missing_by_name_and_its_message_expires(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path,
        cohort={"wait_s": 2.0, "min_sites": 1},
        federation={"name": "t", "rounds": 1},
        evaluation={"sites": False},
    )

    def slow(message: Message, reply: Message) -> Message:
        time.sleep(2.5)
        return reply

    federation.hostile = {"dee": slow}
    federation.run()
    event = federation.events("round")[0]
    assert event["missing"] == ["dee"]
    assert event["answered"] == 3


def test_weights_are_the_servers_and_never_the_sites_word(tmp_path: Path) -> None:
    def boast(message: Message, reply: Message) -> Message:
        content = RecordDict(
            {
                protocol.UPDATE: ArrayRecord({"vector": Array(vector_of(reply))}),
                protocol.REPORT: MetricRecord({"loss": 0.1, "records": 10**9, "steps": 1}),
            }
        )
        return Message(content, reply_to=message)

    quiet = {"sites": False, "every": 0}
    uniform, boasted = (
        Federation(tmp_path / "a", evaluation=quiet),
        Federation(tmp_path / "b", evaluation=quiet),
    )
    boasted.hostile = {"ann": boast}
    assert np.array_equal(uniform.run(), boasted.run())
    capped = {"weighting": {"records_cap": 25}}
    fair = Federation(tmp_path / "c", evaluation=quiet, aggregation=capped)
    bounded = Federation(tmp_path / "d", evaluation=quiet, aggregation=capped)
    bounded.hostile = {"dee": boast}  # dee has 35 records: at the cap with or without the boast
    assert np.array_equal(fair.run(), bounded.run())
    assert not np.array_equal(fair.run(), uniform.run())


def test_one_round_is_the_mean_of_what_each_site_does_alone(tmp_path: Path) -> None:
    federation = Federation(tmp_path, federation={"name": "t", "rounds": 1})
    model = federation.run()
    trainer, start = (
        federation.sites.bench.trainer,
        federation.sites.bench.trainer.layout.read(build_model(Line(), 0)),
    )
    changes = [
        trainer.train(start, split.train, site=name, round_number=1, randomness=SeededRandomness(0)).change
        for name, split in Line().data().items()
    ]
    np.testing.assert_allclose(model, start + np.mean(changes, axis=0, dtype=np.float64), rtol=0, atol=1e-7)


def test_sites_measure_the_model_and_the_mean_is_uniform(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()
    last = [event for event in federation.events("evaluation") if event["round"] == 2]
    by_site = {event["where"]: event["metrics"]["accuracy"] for event in last}
    assert set(by_site) == {"sites", *(f"site:{name}" for name in NAMES)}
    assert by_site["sites"] == pytest.approx(np.mean([by_site[f"site:{name}"] for name in NAMES]))


def scaffold_federation(folder: Path, rounds: int = 3) -> Federation:
    return Federation(
        folder,
        federation={"name": "t", "rounds": rounds},
        training={
            "scaffold": True,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "local_steps": 3,
            "batch_size": 64,
        },
    )


def test_scaffold_equals_the_algorithm_written_out(tmp_path: Path) -> None:
    """Karimireddy et al. (2020), Algorithm 1, option II, in float64 by hand."""
    federation = scaffold_federation(tmp_path)
    model = federation.run()
    task = Line()
    x = build_model(task, 0).double()
    c = [torch.zeros_like(p) for p in x.parameters()]
    own = {name: [torch.zeros_like(p) for p in x.parameters()] for name in NAMES}
    for _ in range(3):
        moves, changes = [], []
        for name, split in task.data().items():
            y = build_model(task, 0).double()
            y.load_state_dict(x.state_dict())
            for _ in range(3):
                y.zero_grad()
                task.loss(y(split.train.inputs.double()), split.train.targets).mean().backward()  # type: ignore[attr-defined,no-untyped-call]
                with torch.no_grad():
                    for p, server, client in zip(y.parameters(), c, own[name], strict=True):
                        assert p.grad is not None
                        p.sub_(0.1 * (p.grad - client + server))
            with torch.no_grad():
                new = [
                    client - server + (px - py) / (3 * 0.1)
                    for client, server, px, py in zip(
                        own[name], c, x.parameters(), y.parameters(), strict=True
                    )
                ]
                changes.append([after - before for after, before in zip(new, own[name], strict=True)])
                moves.append([py - px for px, py in zip(x.parameters(), y.parameters(), strict=True)])
            own[name] = new
        with torch.no_grad():
            for index, p in enumerate(x.parameters()):
                p.add_(torch.stack([move[index] for move in moves]).mean(0))
                c[index] = c[index] + torch.stack([change[index] for change in changes]).mean(0)
    expected = torch.cat([p.detach().reshape(-1) for p in x.parameters()]).numpy()
    np.testing.assert_allclose(model, expected, rtol=0, atol=2e-6)
