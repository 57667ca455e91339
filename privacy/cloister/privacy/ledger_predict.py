"""``cloister ledger predict``: what a federation file would bring a site's ledger to, before anybody agrees to it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cloister.core.errors import UsageError
from cloister.core.outcome import JsonOption, SetOption, outcome, visible

__all__ = ["predict_command"]


def predict_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The ledger's file.", show_default=False)],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The federation file of the run.", show_default=False)
    ],
    settings: SetOption = None,
    json_output: JsonOption = False,
) -> None:
    """Say what a whole run would bring the ledger to, and whether the site's cap allows it (exit 5 if not). Nothing is charged."""
    with outcome(json_output) as out:
        from cloister.core.spec import load_federation
        from cloister.privacy.accounting import account
        from cloister.privacy.events import to_json
        from cloister.privacy.ledger.budget import RELATION, Composer
        from cloister.privacy.ledger.entry import canonical_json
        from cloister.privacy.ledger.inspection import inspect
        from cloister.privacy.ledger.spending import epsilon_of, refuse_beyond, stated_delta
        from cloister.privacy.plan import plan_from

        loaded = load_federation(file, settings or [])
        size = 1  # the model's length matters where the noise is distributed, and there only
        if loaded.spec.privacy.unit == "site-distributed":
            from cloister.core.resolve import build_model, load_task
            from cloister.core.update import Layout

            task = load_task(loaded.spec.task, loaded.base)
            size = Layout.of(build_model(task, loaded.spec.federation.seed)).size
        plan = plan_from(loaded.spec, size)
        if plan is None:
            raise UsageError(
                f"'{file}' promises no differential privacy: a ledger has nothing to compare",
                remedy="name a file with a [privacy] table",
            )
        if not path.exists():
            raise UsageError(f"there is no ledger '{path}'", remedy="name the ledger's file")
        found = inspect(path)
        found.require()
        chain, composer = found.chain, Composer(account)
        delta = stated_delta(chain, plan.unit, plan.delta)
        before = epsilon_of(chain, plan.unit, delta, composer)
        cap = chain.cap(plan.unit)
        alone = plan.spent(plan.rounds).epsilon
        out.say(
            visible(
                f"the run alone: epsilon = {alone:.4g} at delta = {plan.delta:g} for unit '{plan.unit}', "
                f"if the site takes part in all {plan.rounds} rounds"
            )
        )
        after = refuse_beyond(
            chain,
            [canonical_json(to_json(plan.event(plan.rounds)))],
            composer,
            unit=plan.unit,
            relation=RELATION,
            delta=plan.delta,
            now=datetime.now(UTC),
        )
        out.result = {
            "path": str(path),
            "unit": plan.unit,
            "run": {"epsilon": alone, "delta": plan.delta, "rounds": plan.rounds},
            "ledger": {
                "before": before,
                "after": after,
                "delta": delta,
                "cap": None if cap is None else cap.epsilon,
            },
        }
        limit = "no cap is set" if cap is None else f"the cap is {cap.epsilon:g}"
        out.say(
            visible(
                f"everything charged to '{chain.entries[0].dataset}': epsilon = {before:.4g} now, "
                f"{after:.4g} afterwards, at delta = {delta:g}; {limit}"
            )
        )
