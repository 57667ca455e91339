"""``cloister server run`` for its operator, and ``cloister job …`` for users."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cloister.core.errors import AuditFailed, PeersMissing, PolicyError
from cloister.core.outcome import FileArgument, JsonOption, Outcome, SetOption, outcome, visible

if TYPE_CHECKING:
    from cloister.privacy.identity.kit import Kit
    from cloister.server.deployment.client import JobsClient
    from cloister.server.deployment.store import Job

__all__ = ["register_jobs", "register_server"]

FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="The server's folder.", show_default=False)
]
KitOption = Annotated[
    Path,
    typer.Option("--kit", metavar="DIR", envvar="CLOISTER_KIT", help="Your kit: the folder with user.toml."),
]
RunArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.", show_default=False)]


def register_server(app: typer.Typer) -> None:
    """Add ``server`` to ``app``."""
    group = typer.Typer(
        no_args_is_help=True, help="Run the coordinator of a consortium.", rich_markup_mode="markdown"
    )
    group.command("run")(run_command)
    group.command("superlink")(superlink_command)
    app.add_typer(group, name="server")


def register_jobs(app: typer.Typer) -> None:
    """Add ``job`` to ``app``."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Ask a consortium to run a federation, and follow it.",
        rich_markup_mode="markdown",
    )
    group.command("submit")(submit_command)
    group.command("list")(list_command)
    group.command("watch")(watch_command)
    group.command("stop")(stop_command)
    group.command("download")(download_command)
    app.add_typer(group, name="job")


def run_command(
    folder: FolderArgument,
    no_superlink: Annotated[
        bool,
        typer.Option("--no-superlink", help="The SuperLink runs elsewhere: cloister server superlink."),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Run the server until it is stopped (Ctrl-C, SIGTERM): SuperLink, job service, and a process for each job."""
    with outcome(json_output) as out:
        from contextlib import ExitStack

        from cloister.core.observing import Observatory, log_to
        from cloister.core.stopping import stopped_by_signals
        from cloister.server.deployment.daemon import Daemon
        from cloister.server.deployment.running import open_office
        from cloister.server.run_folder import lock_folder

        log_to()
        office = open_office(folder.absolute())
        lock_folder(office.state, "server")
        daemon = Daemon(office, superlink=not no_superlink)
        with ExitStack() as stack:
            if office.config.metrics is not None:
                stack.enter_context(Observatory(office.config.metrics.listen, daemon.registry, daemon.health))
            stop = stack.enter_context(stopped_by_signals())
            out.progress.print(
                visible(
                    f"server '{office.kit.identity.name}': jobs on {office.config.jobs.listen}, SuperLink on "
                    f"{office.config.server.superlink}"
                ),
                highlight=False,
            )
            daemon.run(stop)
        out.result = {"folder": str(folder)}


def superlink_command(folder: FolderArgument) -> None:
    """Run the SuperLink alone, in place of this process."""
    with outcome(False):
        import os

        from cloister.server.deployment.running import open_office
        from cloister.server.deployment.superlink import command, environment

        office = open_office(folder.absolute())
        arguments = command(office.kit, office.config.server.superlink, office.state)
        os.execve(arguments[0], arguments, environment(office.state))  # noqa: S606 - our own arguments


def submit_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    file: FileArgument,
    kit: KitOption = Path(),
    purpose: Annotated[
        str, typer.Option("--purpose", help="Why: the sites' privacy officers read it.", show_default=False)
    ] = "",
    sites: Annotated[
        str,
        typer.Option(
            "--sites",
            metavar="A,B,C",
            help="Ask these sites only; all members if left out.",
            show_default=False,
        ),
    ] = "",
    settings: SetOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Sign a request to run FILE, and queue it."""
    with outcome(json_output) as out:
        from cloister.core.spec import load_federation
        from cloister.privacy.identity import Role
        from cloister.privacy.request import JobRequest

        loaded = load_federation(file, settings or [])
        own, client = _client(kit)
        with client:
            named = tuple(name.strip() for name in sites.split(",") if name.strip())
            request = JobRequest.new(
                loaded.spec.federation.name,
                loaded.digest(),
                purpose=purpose,
                sites=named or tuple(own.members().of(Role.SITE)),  # what is signed says who is in the run
            )
            job = client.submit(request.signed(own.identity), json.dumps(loaded.effective()))
            out.result = _shown(job)
            out.say(visible(f"job {job.run} is {job.state}"))
            if watch:
                _follow(out, client, job.run)
            else:
                out.say(f"\nnext: cloister job watch {shlex.quote(job.run)}")


def list_command(kit: KitOption = Path(), json_output: JsonOption = False) -> None:
    """List the jobs that you may see."""
    with outcome(json_output) as out:
        _, client = _client(kit)
        with client:
            jobs = client.jobs()
        out.result = {"jobs": [_shown(job) for job in jobs]}
        table = Table(box=None, pad_edge=False)
        for title in ("job", "user", "submitted", "state", ""):
            table.add_column(title)
        for job in jobs:
            since = datetime.fromtimestamp(job.submitted, UTC).strftime("%Y-%m-%d %H:%M")
            table.add_row(
                *(visible(text) for text in (job.run, job.user, since, job.state, job.message[:100]))
            )
        out.say(table if jobs else "no jobs")


def watch_command(run: RunArgument, kit: KitOption = Path(), json_output: JsonOption = False) -> None:
    """Follow a job until it ends; the exit status is how it ended."""
    with outcome(json_output) as out:
        _, client = _client(kit)
        with client:
            _follow(out, client, run)


def stop_command(run: RunArgument, kit: KitOption = Path(), json_output: JsonOption = False) -> None:
    """Stop a job; what its sites have spent stays spent."""
    with outcome(json_output) as out:
        _, client = _client(kit)
        with client:
            job = client.stop(run)
        out.result = _shown(job)
        out.say(visible(f"job {job.run} is {job.state}"))


def download_command(
    run: RunArgument,
    kit: KitOption = Path(),
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Where; JOB if left out.", show_default=False)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Fetch a finished job's model and report."""
    with outcome(json_output) as out:
        _, client = _client(kit)
        with client:
            made = client.download(run, to or Path(Path(run).name))
        out.result = {"files": [str(path) for path in made]}
        for path in made:
            out.say(visible(str(path)))


def _client(kit: Path) -> tuple[Kit, JobsClient]:
    from cloister.privacy.identity import Role
    from cloister.privacy.identity.kit import load_kit
    from cloister.server.deployment.client import JobsClient
    from cloister.server.deployment.user_settings import load_user

    config, own = load_user(kit), load_kit(kit, Role.USER)
    return own, JobsClient(config.server.address, own)


def _follow(out: Outcome, client: JobsClient, run: str) -> None:
    from cloister.server.progress import Progress

    progress, job = Progress(console=out.progress), None
    try:
        for new in client.watch(run):
            if job is None or (new.job.state, new.job.code) != (job.state, job.code):
                text = f"{new.job.state}{': ' + new.job.message if new.job.message else ''}"
                out.progress.print(visible(text), highlight=False)
            job = new.job
            for line in new.events.splitlines():
                progress.handle(json.loads(line))
    finally:
        progress.close()
    if job is None:
        raise PeersMissing("the server told nothing of the job", remedy="see: cloister job list")
    out.result = _shown(job)
    if job.state != "done":
        kind = PolicyError if job.state == "stopped" else AuditFailed if job.code == "audit" else PeersMissing
        raise kind(
            f"the job is {job.state}: {job.message}",
            remedy="read the message; the sites' and the server's logs say more",
            code=job.code or "job-failed",
        )
    out.say(visible(f"job {job.run} is done"), f"\nnext: cloister job download {shlex.quote(job.run)}")


def _shown(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__dataclass_fields__}
