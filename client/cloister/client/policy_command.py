"""``cloister policy check | hash | init``: write a site's policy, and ask what it would say before anybody asks the site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.core.errors import PolicyError, UsageError
from cloister.core.outcome import JsonOption, SetOption, outcome, visible

if TYPE_CHECKING:
    from cloister.client.gate.budget import Cost
    from cloister.client.gate.judging import Verdict

__all__ = ["register"]

SiteOption = Annotated[
    Path | None,
    typer.Option(
        "--site",
        metavar="FOLDER",
        help="The site's folder: its data, task files and ledgers.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add ``policy`` to ``app``."""
    group = typer.Typer(
        no_args_is_help=True,
        help="A site's policy: write it, and ask what it would allow.",
        rich_markup_mode="markdown",
    )
    group.command("check")(check_command)
    group.command("hash")(hash_command)
    group.command("init")(init_command)
    app.add_typer(group, name="policy")


def check_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="The policy.toml.", show_default=False)],
    against: Annotated[
        Path, typer.Option("--against", metavar="FILE", help="The federation file.", show_default=False)
    ],
    site: SiteOption = None,
    user: Annotated[
        str | None, typer.Option("--user", metavar="NAME", help="As if this user asked.", show_default=False)
    ] = None,
    settings: SetOption = None,
    json_output: JsonOption = False,
) -> None:
    """Say whether a policy allows a federation file, or each reason why not (exit 5). Nothing is written."""
    with outcome(json_output) as out:
        from cloister.client.gate.policy import check_datasets, read_policy
        from cloister.client.gate.rehearsing import FileCase, rehearse
        from cloister.core.spec import load_federation

        read, loaded = read_policy(policy), load_federation(against, settings or [])
        table, ledger, name = None, None, None
        rules = read.policy.rules_for(loaded.spec.task.use)
        if site is not None:
            from cloister.client.deployed import ledger_of
            from cloister.client.site_config import load_site
            from cloister.privacy.identity import Role
            from cloister.privacy.identity.kit import load_kit

            config = load_site(site)
            name = config.site.name
            check_datasets(read.policy, config)
            if rules:
                table = config.data[rules[0].dataset]
                ledger = ledger_of(site, config, load_kit(site, Role.SITE), rules[0].dataset)
        case = FileCase(user=user, spec=loaded.spec, folder=site or loaded.base, table=table, site=name)
        verdict, cost = rehearse(read.policy, case, ledger)
        unchecked = _unchecked(user, site)
        if verdict.reasons:
            lines = "".join(f"\n  {reason.code}: {reason.message}" for reason in verdict.reasons)
            raise PolicyError(
                f"'{policy}' does not allow '{against}':{lines}",
                remedy="change the federation file, or have the site's officer change the policy",
                code=verdict.reasons[0].code,
            )
        out.result = _result(verdict, cost, read.digest, unchecked)
        out.say(visible("\n".join(_text(out.result))))


def hash_command(
    task: Annotated[str, typer.Argument(metavar="TASK", help="As task.use names it.", show_default=False)],
    site: SiteOption = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="FILE",
            help="Also the layout of this federation file's model.",
            show_default=False,
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Print what a policy's `code` names: a SHA-256 over the source files of a task's class and its bases."""
    with outcome(json_output) as out:
        from cloister.client.gate.program import program_digest
        from cloister.core._version import __version__
        from cloister.core.spec.tables import TaskTable

        table = _dataset(task, site)
        base = site or (Path() if against is None else against.resolve().parent)
        out.result = {
            "task": task,
            "code": program_digest(table, TaskTable(use=task), base),
            "cloister": __version__,
        }
        if against is not None:
            out.result = {**out.result, "layout": _layout(task, against)}
        for name in ("code", "layout", "cloister"):
            if name in out.result:
                out.say(f'{name} = "{out.result[name]}"')


def init_command(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The site's folder.", show_default=False)
    ] = Path(),
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where there is a policy.toml already.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Write a policy.toml that allows nothing yet, with every key explained, for the data sets of the site's site.toml."""
    with outcome(json_output) as out:
        from cloister.client.gate.careful import careful_policy
        from cloister.client.gate.policy import POLICY, read_policy
        from cloister.client.site_config import load_site
        from cloister.core.files import write_whole

        path = folder / POLICY
        if path.exists() and not replace:
            raise UsageError(f"there is a policy already: '{path}'", remedy="give --replace to write over it")
        write_whole(path, careful_policy(load_site(folder)))
        out.result = {"path": str(path), "sha256": read_policy(path).digest}
        out.say(
            f"wrote {path}: it allows nothing yet. Read it, name users, and take away the # of what you allow"
        )


def _dataset(task: str, site: Path | None) -> Any:
    from cloister.client.site_config import load_site

    if site is None:
        return None
    return next((table for table in load_site(site).data.values() if table.task == task), None)


def _layout(task: str, against: Path) -> str:
    from cloister.core.resolve import build_model, load_task
    from cloister.core.spec import load_federation
    from cloister.core.update import Layout
    from cloister.privacy.audit.canaries import with_canaries

    loaded = load_federation(against)
    if loaded.spec.task.use != task:
        raise UsageError(
            f"'{against}' is about the task '{loaded.spec.task.use}', not '{task}'",
            remedy="name that task, or another file",
        )
    made = with_canaries(load_task(loaded.spec.task, loaded.base), loaded.spec)
    return Layout.of(build_model(made, loaded.spec.federation.seed)).digest


def _unchecked(user: str | None, site: Path | None) -> list[str]:
    found = [] if user is not None else ["who asks (--user)"]
    return found if site is not None else [*found, "the site's records and what its ledger holds (--site)"]


def _result(verdict: Verdict, cost: Cost | None, digest: str, unchecked: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    rule = verdict.rule
    return {
        "allowed": True,
        "dataset": None if rule is None else rule.dataset,
        "approval": None if rule is None else rule.approval,
        "cost": None if cost is None else asdict(cost),
        "policy": digest,
        "unchecked": unchecked,
    }


def _text(found: dict[str, Any]) -> list[str]:
    waits = {
        "always": "each run waits until somebody approves it",
        "first": "the first run of its kind waits until somebody approves it",
        "never": "nobody has to approve it",
    }
    lines = [f"allowed, on data set '{found['dataset']}'; {waits[found['approval']]}"]
    if (cost := found["cost"]) is not None:
        cap = "no cap is set" if cost["cap"] is None else f"the cap is {cost['cap']:g}"
        lines.append(
            f"the whole run costs ε = {cost['run']:.4g}; the data set would go from {cost['before']:.4g} to {cost['after']:.4g} at "
            f"δ = {cost['delta']:g}, and {cap}"
        )
    return [*lines, *(f"not checked: {what}" for what in found["unchecked"])]
