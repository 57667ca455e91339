"""Random operations and crashes against a model in a few lines: the ledger never counts less than the model, nor anything else."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.core.errors import PolicyError
from cloister.privacy.ledger import Ledger, Reservation, verify

KEY = Ed25519PrivateKey.generate()
DELTA = 1e-5
RUNS, ROUNDS, COSTS = ("a", "b"), (0, 1, 2), (0.01, 0.02, 0.3)

keys = st.tuples(st.sampled_from(RUNS), st.sampled_from(ROUNDS), st.integers(1, 2))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), keys, st.sampled_from(COSTS)),
        st.tuples(st.just("draw"), keys),
        st.tuples(st.just("commit"), keys, st.sampled_from([None, "x", "y"])),
        st.tuples(st.just("commit less"), keys, st.sampled_from(COSTS)),
        st.tuples(st.just("abort"), keys),
        st.tuples(st.just("cap"), st.sampled_from([0.0, 0.5, 1.0, 3.0])),
        st.tuples(st.just("crash"), st.booleans()),
    ),
    max_size=25,
)


def account(events: Sequence[Mapping[str, Any]], delta: float) -> float:
    rho = math.fsum(event["rho"] for event in events)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


class Model:
    """What a ledger must do, without a file."""

    def __init__(self) -> None:
        self.rho: dict[Any, float] = {}
        self.state: dict[Any, str] = {}
        self.output: dict[Any, Any] = {}
        self.untouched: set[Any] = set()  # reserved by this process, and no noise was drawn
        self.cap = math.inf

    def epsilon(self, more: float = 0.0) -> float:
        return account(
            [{"rho": math.fsum([more, *(r for k, r in self.rho.items() if self.state[k] != "aborted")])}],
            DELTA,
        )

    def do(self, kind: str, *arguments: Any) -> bool:
        """Return whether it is allowed, and do it."""
        if kind == "cap":
            (self.cap,) = arguments
            return True
        key = arguments[0]
        if kind == "reserve":
            if key in self.state or self.epsilon(arguments[1]) > self.cap + 1e-12:
                return False
            self.rho[key], self.state[key] = arguments[1], "open"
            self.untouched.add(key)
            return True
        if key not in self.state:
            return False
        if kind == "draw":
            allowed = key in self.untouched and self.state[key] == "open"
            self.untouched.discard(key)
            return allowed
        if kind == "abort":
            allowed = key in self.untouched and self.state[key] == "open"
            self.state[key] = "aborted" if allowed else self.state[key]
            return allowed
        if self.state[key] != "open":
            output = arguments[1] if kind == "commit" else None
            return self.state[key] == "committed" and self.output[key] == output
        if kind == "commit less":
            if arguments[1] > self.rho[key]:
                return False
            self.rho[key] = arguments[1]
        self.state[key], self.output[key] = "committed", arguments[1] if kind == "commit" else None
        return True


class System:
    """The ledger, opened again after each crash."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "heart.sqlite"
        self.mine: dict[Any, Reservation] = {}
        self.ledger = self.opened()
        self.head_before = b""

    def opened(self) -> Ledger:
        return Ledger.open(
            self.path, site="north", dataset="heart", key=KEY, account=account, wait_s=0.0, durable=False
        )

    def crash(self, *, between: bool) -> None:
        """Die; ``between`` the last entry and its head file, or after both."""
        head = self.path.with_name(self.path.name + ".head")
        self.ledger.close()
        if between and self.head_before:
            head.write_bytes(self.head_before)
        self.mine.clear()
        self.ledger = self.opened()

    def do(self, kind: str, *arguments: Any) -> bool:
        before = len(self.ledger.entries)
        head = self.path.with_name(self.path.name + ".head").read_bytes()
        try:
            self._do(kind, *arguments)
        except PolicyError:
            assert len(self.ledger.entries) == before
            return False
        finally:
            if len(self.ledger.entries) != before:
                self.head_before = head
        return True

    def _do(self, kind: str, *arguments: Any) -> None:
        if kind == "cap":
            self.ledger.set_cap(arguments[0], DELTA)
            return
        run, round_number, attempt = key = arguments[0]
        if kind == "reserve":
            self.mine[key] = self.ledger.reserve(
                run,
                round_number,
                {"rho": arguments[1]},
                unit="record",
                relation="zero-out",
                delta=DELTA,
                code_hash="c",
                attempt=attempt,
            )
            return
        found = self.mine.get(key) or self.ledger.find(run, round_number, unit="record", attempt=attempt)
        if found is None:
            raise PolicyError("there is no such reservation")
        if kind == "draw":
            found.noise_drawn()
        elif kind == "abort":
            found.abort("model")
        elif kind == "commit":
            found.commit(output=arguments[1])
        elif found.state == "open":
            found.commit(event={"rho": arguments[1]})
        else:
            found.commit()


@settings(max_examples=50)
@given(operations)
def test_the_ledger_does_what_the_model_does_whatever_happens(ops: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, system = Model(), System(Path(folder))
        for kind, *arguments in ops:
            if kind == "crash":
                system.crash(between=arguments[0])
                model.untouched.clear()
            else:
                assert system.do(kind, *arguments) == model.do(kind, *arguments), (kind, arguments)
            assert system.ledger.spent("record", delta=DELTA) == pytest.approx(model.epsilon(), rel=1e-9)
        system.ledger.close()
        found = verify(system.path, account=account)
        assert found.problems == ()
        settled = sum(state != "open" for state in model.state.values())
        caps = sum(kind == "cap" for kind, *_ in ops)
        assert found.entries == 1 + caps + len(model.state) + settled
