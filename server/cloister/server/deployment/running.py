"""One job, from its signed request to its report: the ServerApp of a real federation, in a process of its own.

The run folder is named after the run and found again after a crash of anything: the job goes on from its last checkpoint, over a new run at the
SuperLink.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, RecordDict

from cloister.core._version import __version__
from cloister.core.checking import check_federation
from cloister.core.errors import PeersMissing, SpecError, UsageError
from cloister.core.files import write_whole
from cloister.core.finding import innermost, named_tasks
from cloister.core.randomness import SystemRandomness
from cloister.core.resolve import build_model, described, load_task, notes_of
from cloister.core.source import source_digest
from cloister.core.spec import Loaded, parse_federation
from cloister.core.task import Task
from cloister.core.update import Layout, Vector
from cloister.privacy.audit.canaries import with_canaries
from cloister.privacy.authority.client import RemoteAuthority
from cloister.privacy.authority.tls import SERVER, Credentials
from cloister.privacy.identity import Role
from cloister.privacy.identity.kit import Kit, load_kit
from cloister.privacy.identity.register import Register, read_register
from cloister.privacy.ledger import load_or_create_key
from cloister.privacy.plan import predict
from cloister.privacy.protection import needs_authority
from cloister.privacy.protection import predict as predict_protection
from cloister.privacy.request import JobRequest, SignedRequest
from cloister.server.app import make_server_app
from cloister.server.conduct import Conduct, Opened, RunResult, conduct
from cloister.server.deployment.desk import Desk
from cloister.server.deployment.settings import ServerConfig, load_server
from cloister.server.deployment.sites import asked_sites, gather
from cloister.server.events import Sink
from cloister.server.plan import RunPlan, SecureSeat
from cloister.server.release import try_model
from cloister.server.run_folder import REQUEST, RunFolder
from cloister.server.witnessing import Witnesses

__all__ = ["Office", "check_job", "open_office", "run_job"]

_NAMED = 1000


@dataclass(frozen=True, kw_only=True)
class Office:
    """The server's own: its folder, settings, keys and members.

    Attributes:
        folder: the server's.
        config: its ``server.toml``.
        kit: who it is.
        register: who the members are.
    """

    folder: Path
    config: ServerConfig
    kit: Kit
    register: Register

    @property
    def state(self) -> Path:
        """Where it keeps what must outlive it."""
        return self.folder / self.config.server.state

    def run_folder(self, run: str) -> Path:
        """Return where a job's run folder is, or will be."""
        return self.folder / self.config.server.runs / run

    @property
    def node_keys(self) -> dict[str, bytes]:
        """The public key of each site as a Flower node, by name."""
        sites = self.register.of(Role.SITE).items()
        return {name: entry.node_key for name, entry in sites if entry.node_key is not None}

    def desk(self) -> Desk:
        """Return how the SuperLink is reached."""
        return Desk(
            address=self.config.server.superlink,
            root=self.kit.root.read_bytes(),
            secret=(self.state / "superlink.secret").read_bytes(),
            lock=self.state / "superlink.lock",
        )


def open_office(folder: Path) -> Office:
    """Read a server's folder.

    Raises:
        SpecError: (settings) ``server.toml`` was refused.
        IntegrityError: the kit or the register of members does not hold.
    """
    config, kit = load_server(folder), load_kit(folder, Role.SERVER)
    office = Office(folder=folder, config=config, kit=kit, register=read_register(folder, kit.consortium))
    office.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return office


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    loaded: Loaded
    task: Task
    layout: Layout
    initial: Vector
    notes: list[str]
    card: dict[str, Any]
    fingerprint: str


def check_job(office: Office, federation: str, sites: tuple[str, ...] = ()) -> None:
    """Refuse a federation that could not run here, before anybody is asked anything.

    Args:
        office: the server's own.
        federation: the effective file as JSON.
        sites: whom the request asks; all members if left out.

    Raises:
        CloisterError: whatever refused it.
    """
    _prepare(office, federation, asked_sites(list(office.node_keys), sites))


def run_job(
    office: Office, signed: SignedRequest, federation: str, *, sinks: tuple[Sink, ...] = ()
) -> RunResult:
    """Run a job, or go on with it, to its end.

    Raises:
        CloisterError: whatever ended it; ``PeersMissing`` is worth another attempt later.
    """
    _, request = signed.opened(office.kit.consortium)
    names = asked_sites(list(office.node_keys), request.sites)
    prepared = _prepare(office, federation, names)
    loaded = prepared.loaded
    folder = _folder(office, request, loaded)
    fields = {name: value.hex() for name, value in signed.to_fields().items()}
    write_whole(folder.path / REQUEST, json.dumps(fields, sort_keys=True) + "\n")
    spec = loaded.spec
    one = Conduct(
        folder=folder,
        loaded=loaded,
        task=prepared.task,
        layout=prepared.layout,
        initial=prepared.initial,
        randomness=SystemRandomness(),
        fingerprint=prepared.fingerprint,
        central=None,
        facts=lambda: {
            "sites": len(names),
            "site_names": names[:_NAMED],
            "engine": "superlink",
            "workers": len(names),
            "task": prepared.card,
            "partition": None,
            "notes": prepared.notes,
            "attack": None,
            "liars": [],
        },
        witnesses=_witnesses(office, innermost(spec.task).use) if spec.privacy.unit != "none" else None,
        request=signed,
    )

    @contextmanager
    def opened() -> Iterator[tuple[Opened, SecureSeat | None]]:
        with ExitStack() as stack:
            seat = _seat(office, spec.aggregation.protection, stack)
            yield _OverSuperLink(office, names), seat

    try:
        return conduct(one, opened, sinks=sinks)
    except httpx.HTTPError as error:
        raise PeersMissing(
            f"the SuperLink broke off: {type(error).__name__}",
            remedy="nothing: the job is tried again, and goes on where it was",
            code="superlink",
        ) from None


class _OverSuperLink:
    """Carries a plan over the SuperLink."""

    def __init__(self, office: Office, names: list[str]) -> None:
        self._office, self._names = office, names

    def run(self, plan: RunPlan) -> Vector:
        models: list[Vector] = []
        desk, cohort = self._office.desk(), plan.loaded.spec.cohort
        keys = self._office.node_keys
        desk.wait_ready(cohort.wait_s)
        known = desk.admit(keys.values())
        nodes = {name: known[keys[name]] for name in self._names}
        with desk.open_run(self._office.config.server.most_bytes) as grid:
            directory = gather(
                grid,
                nodes,
                least=cohort.min_sites,
                wait_s=cohort.wait_s,
                awaited=lambda away: plan.bus.announce("asked", 0, phase="connect", sites=away),
            )
            app = make_server_app(plan, lambda _: directory, models.append)
            app(
                grid=grid,
                context=Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
            )
        return models[0]


def _prepare(office: Office, federation: str, names: list[str]) -> _Prepared:
    try:
        tables = json.loads(federation)
    except (ValueError, RecursionError):
        raise SpecError("the federation is not JSON", code="spec") from None
    loaded = parse_federation(tables, base=office.folder)
    spec = loaded.spec
    use = spec.task.use
    strange = [one for one in named_tasks(spec.task) if ":" in one and one not in office.config.jobs.tasks]
    if strange:
        raise SpecError(
            f"task.use = '{strange[0]}': a server runs installed tasks only",
            remedy="install the task with an entry point at the server and at the sites, or have the server's operator name it in jobs.tasks",
            code="task-not-installed",
        )
    if spec.attack is not None:
        raise SpecError("[attack] is for simulations", remedy="leave it out", code="unsound")
    if spec.cohort.partition.by != "site":
        raise SpecError(
            f"cohort.partition.by = '{spec.cohort.partition.by}' splits one's own data over virtual sites, and here each site has its own",
            remedy="set it to 'site'",
            code="unsound",
        )
    if len(names) < spec.cohort.min_sites:
        raise SpecError(
            f"{len(names)} sites are asked, and cohort.min_sites is {spec.cohort.min_sites}",
            remedy="ask more sites, or lower cohort.min_sites",
            code="unsound",
        )
    if needs_authority(spec.aggregation.protection) and office.config.authority is None:
        raise SpecError(
            f"aggregation.protection = '{spec.aggregation.protection}' needs a key authority, and this server knows none",
            remedy="name it as [authority] in server.toml, or use 'masked'",
            code="unsound",
        )
    own = load_task(spec.task, office.folder)
    notes = [*check_federation(loaded, own), *notes_of(own)]
    if spec.audit.canary_site not in {None, *names}:
        raise SpecError(
            f"audit.canary_site = '{spec.audit.canary_site}' is none of the sites that are asked: {', '.join(names[:20])}",
            remedy="name one of them",
            code="audit-site",
        )
    task = with_canaries(own, spec)
    if spec.evaluation.baselines:
        notes.append("no baseline is trained: nobody has all records")
    model = build_model(task, spec.federation.seed)
    layout = Layout.of(model)
    try_model(model, layout)
    predict(spec, layout.size)
    predict_protection(spec, layout.size, classes=len(task.classes), cohort=len(names))
    code = source_digest(type(own), use, office.folder)
    return _Prepared(
        loaded=loaded,
        task=task,
        layout=layout,
        initial=layout.read(model),
        notes=notes,
        card=described(own),
        fingerprint=f"code={code} versions=cloister-{__version__}",
    )


def _folder(office: Office, request: JobRequest, loaded: Loaded) -> RunFolder:
    path = office.run_folder(request.run)
    if (path / "federation.toml").is_file():
        return RunFolder.reopen(path)[0]
    return RunFolder.create_at(path, loaded, run=request.run)


def _witnesses(office: Office, task: str) -> Witnesses:
    place = office.state / "witnessed"
    place.mkdir(mode=0o700, exist_ok=True)
    name = hashlib.sha256(task.encode()).hexdigest()[:24]
    return Witnesses(place / f"{name}.json", load_or_create_key(office.state / "witness.pem"))


def _seat(office: Office, protection: str, stack: ExitStack) -> SecureSeat | None:
    if protection == "plain":
        return None
    seat = SecureSeat(identity=office.kit.identity, consortium=office.kit.consortium)
    if not needs_authority(protection):
        return seat
    table = office.config.authority
    if table is None:
        raise UsageError("no key authority", remedy="name it as [authority] in server.toml")
    credentials = Credentials.read(office.folder / "authority", SERVER)
    authority = stack.enter_context(RemoteAuthority(table.address, credentials))
    return SecureSeat(identity=seat.identity, consortium=seat.consortium, authority=authority)
