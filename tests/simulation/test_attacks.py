"""What liars send, by their papers' formulas; that the optimising ones rehearse the deployed rule; and lies in a site's data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cloister.core import SeededRandomness, Split, TensorData
from cloister.core.errors import SpecError
from cloister.core.spec import FederationSpec, parse_federation
from cloister.core.tasks.digits import Digits
from cloister.core.tasks.heart import Heart
from cloister.simulation.attacks.crafting import CRAFTS, hiding_z
from cloister.simulation.attacks.data import flipped, poisoned, trigger_of, triggered
from cloister.simulation.attacks.grid import _filled_up, _rows_of
from cloister.simulation.attacks.knowing import Known, draw_liars
from cloister.simulation.attacks.optimising import opt_alie, opt_ipm, rehearsed
from cloister.simulation.rehearsal.judging import judged
from cloister.simulation.rehearsal.page import table_of
from cloister.simulation.rehearsal.planning import ATTACK, RULE
from cloister.strategies.robust import Pipeline

SIZE = 30
HONEST = dict(zip((1, 3, 4, 6, 7, 8, 9), np.random.default_rng(0).standard_normal((7, SIZE)).astype(np.float32) + 0.3, strict=True))  # fmt: skip
OWN = {2: np.full(SIZE, 0.5, np.float32), 5: np.linspace(-1, 1, SIZE, dtype=np.float32)}
ROWS = np.array(list(HONEST.values()), dtype=np.float64)
MOVED = np.linspace(-3, 2, SIZE)


def spec(name: str, rule: str = "arc | nnm | trimmed-mean", **own: Any) -> FederationSpec:
    document = {
        "federation": {"name": "t", "rounds": 9},
        "task": {"use": "digits"},
        "aggregation": {"rule": rule, "byzantine": 2},
        "attack": {"name": name, **own},
    }
    return parse_federation(document, base=Path()).spec


def known(name: str, rule: str = "arc | nnm | trimmed-mean", **more: Any) -> Known:
    keys = {"number": 3, "moved": MOVED, "memory": {}}
    given = {key: more.pop(key, value) for key, value in keys.items()}
    made = spec(name, rule, **more)
    assert made.attack is not None
    return Known(
        attack=made.attack,
        spec=made,
        model=np.zeros(SIZE, np.float32),
        honest=HONEST,
        own=OWN,
        generator=np.random.default_rng(7),
        **given,
    )


def one_lie(name: str, **more: Any) -> npt.NDArray[np.float64]:
    """What every liar sends, where all send the same."""
    sent = CRAFTS[name](known(name, **more))
    assert set(sent) == set(OWN)
    assert (sent[2] == sent[5]).all()
    return sent[2].astype(np.float64)


class TestCrafts:
    def test_sign_flip_turns_each_liar_s_own_update_round(self) -> None:
        sent = CRAFTS["sign-flip"](known("sign-flip", scale=3.0))
        assert all((sent[node] == -3 * OWN[node]).all() for node in OWN)

    def test_ipm_is_a_negative_multiple_of_the_honest_mean(self) -> None:
        assert one_lie("ipm", scale=4.0) == pytest.approx(-4 * ROWS.mean(axis=0), abs=1e-6)

    def test_alie_hides_some_deviations_from_the_honest_mean(self) -> None:
        assert one_lie("alie", z=1.5) == pytest.approx(ROWS.mean(axis=0) - 1.5 * ROWS.std(axis=0), abs=1e-6)

    def test_its_z_is_that_of_the_paper(self) -> None:
        # Baruch et al. §3.2: n = 50, m = 24 → s = 2, z = Φ⁻¹((50 - 24 - 2) / (50 - 24)) = Φ⁻¹(0.923)
        assert hiding_z(26, 24) == pytest.approx(1.4261, abs=1e-4)

    @pytest.mark.parametrize("direction", ["unit", "std", "sign"])
    def test_min_max_goes_exactly_as_far_as_two_honest_updates_lie_apart(self, direction: str) -> None:
        lie = one_lie("min-max", direction=direction)
        apart = max(np.linalg.norm(a - b) for a in ROWS for b in ROWS)
        assert max(np.linalg.norm(lie - row) for row in ROWS) == pytest.approx(apart, rel=1e-5)
        further = lie + 0.01 * (lie - ROWS.mean(axis=0))
        assert max(np.linalg.norm(further - row) for row in ROWS) > apart

    @pytest.mark.parametrize("direction", ["unit", "std", "sign"])
    def test_min_sum_is_no_further_in_sum_than_the_furthest_honest_update(self, direction: str) -> None:
        lie = one_lie("min-sum", direction=direction)
        most = max(np.square(ROWS - row).sum() for row in ROWS)
        assert np.square(ROWS - lie).sum() == pytest.approx(most, rel=1e-5)
        assert not np.allclose(lie, one_lie("min-max", direction=direction), atol=1e-3)

    def test_mimic_repeats_one_honest_update_and_stays_with_its_site(self) -> None:
        memory: dict[str, Any] = {}
        lie = one_lie("mimic", memory=memory)
        (node,) = [node for node, row in HONEST.items() if np.allclose(row, lie)]
        about = ROWS - ROWS.mean(axis=0)
        along = np.linalg.svd(about)[2][0]
        assert node == list(HONEST)[int(np.argmax(np.abs(about @ along)))]
        other = next(one for one in HONEST if one != node)
        assert (one_lie("mimic", memory={"mimic": np.array([other])}) == HONEST[other]).all()

    def test_not_finite_is_what_it_says(self) -> None:
        sent = CRAFTS["not-finite"](known("not-finite"))
        assert np.isnan(sent[2]).any()
        assert np.isinf(sent[5]).any()

    def test_stale_replay_is_late_by_its_delay(self) -> None:
        memory: dict[str, Any] = {}
        for number in range(1, 7):
            own = {node: row + number for node, row in OWN.items()}
            made = known("stale-replay", delay=2, memory=memory, number=number)
            sent = CRAFTS["stale-replay"](Known(**{**vars(made), "own": own}))
            assert (sent[2] == OWN[2] + max(1, number - 2)).all()
        assert len([name for name in memory if name.startswith("stale.2.")]) == 3

    def test_a_free_rider_sends_what_the_last_round_changed(self) -> None:
        assert one_lie("free-rider") == pytest.approx(MOVED, rel=1e-6)
        assert not one_lie("free-rider", moved=None).any()

    def test_constrain_and_scale_is_no_longer_than_the_longest_honest_update(self) -> None:
        longest = max(np.linalg.norm(row) for row in ROWS)
        sent = CRAFTS["constrain-and-scale"](known("constrain-and-scale"))
        for node, vector in sent.items():
            factor = float(vector[0] / OWN[node][0])
            assert (vector / OWN[node])[OWN[node] != 0] == pytest.approx(factor, rel=1e-4)
            assert factor == pytest.approx(min(9 / 2, longest / np.linalg.norm(OWN[node])), rel=1e-4)

    def test_neurotoxin_leaves_alone_what_moves_most(self) -> None:
        sent = CRAFTS["neurotoxin"](known("neurotoxin", ratio=0.2))
        untouched = np.argsort(-np.abs(MOVED))[:6]
        assert not sent[2][untouched].any()
        assert (np.delete(sent[2], untouched) == np.delete(OWN[2], untouched)).all()


class TestOptimising:
    @pytest.mark.parametrize("craft", [opt_alie, opt_ipm])
    @pytest.mark.parametrize(
        "rule", ["median", "krum", "arc | nnm | trimmed-mean", "bucketing(1) | geometric-median"]
    )
    def test_no_strength_of_the_grid_does_more_harm_to_the_deployed_rule(self, craft: Any, rule: str) -> None:
        given = known("opt-alie" if craft is opt_alie else "opt-ipm", rule)
        along = given.deviation if craft is opt_alie else given.mean

        def harm(lie: npt.NDArray[np.float64]) -> float:
            rows = np.concatenate([ROWS, [lie, lie]])
            answer = Pipeline.parse(rule).aggregate(rows, f=2, generator=np.random.default_rng(0))
            return float(np.linalg.norm(answer - given.mean))

        best = harm(craft(given)[2].astype(np.float64))
        assert all(best >= harm(given.mean + strength * along) - 1e-5 for strength in (-64, -4, -1, -0.25, 0.25, 1, 4, 64))  # fmt: skip

    def test_against_another_rule_the_lie_is_another(self) -> None:
        lies = [opt_ipm(known("opt-ipm", rule))[2] for rule in ("mean", "krum", "arc | nnm | trimmed-mean")]
        assert np.abs(lies[0]).max() > 10 * np.abs(lies[2]).max()
        assert not np.allclose(lies[1], lies[2])

    def test_the_rehearsal_is_the_deployed_rule_s_own_answer(self) -> None:
        given, lie = known("opt-ipm"), np.full(SIZE, -1.0)
        answer = Pipeline.parse("arc | nnm | trimmed-mean").aggregate(np.concatenate([ROWS, [lie, lie]]), f=2)
        assert (rehearsed(given, lie) == answer).all()


class TestLiars:
    def test_they_are_drawn_from_the_seed_and_are_as_many_as_the_file_says(self) -> None:
        drawn = [draw_liars(spec("ipm"), 12, SeededRandomness(seed)) for seed in range(5)]
        assert all(len(one) == 2 for one in drawn)
        assert len(set(drawn)) > 1
        assert drawn[0] == draw_liars(spec("alie"), 12, SeededRandomness(0))
        assert draw_liars(spec("none"), 12, SeededRandomness(0)) == frozenset()

    def test_nobody_or_everybody_lying_is_refused(self) -> None:
        with pytest.raises(SpecError, match="2 of 2 sites would lie"):
            draw_liars(spec("ipm"), 2, SeededRandomness(0))


class TestData:
    task = Digits()
    split = task.data()

    def test_flipped_labels_are_turned_round_and_test_records_stay(self) -> None:
        found = flipped(self.split, self.task)
        assert (found.train.targets == 9 - self.split.train.targets).all()
        inputs, targets = found.train.batch(torch.arange(5))
        assert (inputs == self.split.train.batch(torch.arange(5))[0]).all()
        assert (targets == 9 - self.split.train.targets[:5]).all()
        assert found.test is self.split.test
        assert (found.train.subset(np.array([7, 3])).targets == found.train.targets[[7, 3]]).all()

    def test_a_poisoned_share_carries_trigger_and_target_and_the_rest_stays(self) -> None:
        attack = spec("badnets", target=7, poison=0.25, patch=2).attack
        assert attack is not None
        trigger = trigger_of(attack, self.task, self.split.train)
        found = poisoned(self.split, trigger, 0.25, SeededRandomness(0), 3)
        rows = torch.arange(len(found.train))
        before, labels = self.split.train.batch(rows)
        after, targets = found.train.batch(rows)
        marked = (after[:, 0, 6:, 6:] == trigger.value).all(dim=(1, 2))
        changed = (after != before).any(dim=(1, 2, 3))
        assert int(marked.sum()) == round(0.25 * len(rows))
        assert not (changed & ~marked).any()
        assert (targets[marked] == 7).all()
        assert (targets[~marked] == labels[~marked]).all()
        assert (after[:, 0, :6, :] == before[:, 0, :6, :]).all()

    def test_the_parts_of_a_distributed_trigger_are_apart_and_make_the_whole(self) -> None:
        attack = spec("dba").attack
        assert attack is not None
        whole = trigger_of(attack, self.task, self.split.train)
        parts = [{tuple(pixel) for pixel in whole.part(k, 4).pixels.tolist()} for k in range(4)]
        assert sum(map(len, parts)) == len(whole.pixels) == 9
        assert set.union(*parts) == {tuple(pixel) for pixel in whole.pixels.tolist()}

    def test_success_is_measured_on_other_classes_only(self) -> None:
        attack = spec("badnets", target=4).attack
        assert attack is not None
        found = triggered(self.split.test, trigger_of(attack, self.task, self.split.train))
        assert found is not None
        assert len(found) == int((self.split.test.targets != 4).sum())
        assert (found.targets == 4).all()
        only = TensorData(torch.zeros(3, 1, 8, 8), torch.full((3,), 4))
        assert triggered(only, trigger_of(attack, self.task, self.split.train)) is None

    @pytest.mark.parametrize(
        ("own", "why"),
        [({"patch": 9}, "does not fit into images of 8 x 8"), ({"target": 10}, "counted from 0")],
    )
    def test_a_trigger_that_the_task_has_no_room_for_is_refused(self, own: dict[str, Any], why: str) -> None:
        attack = spec("badnets", **own).attack
        assert attack is not None
        with pytest.raises(SpecError, match=why):
            trigger_of(attack, self.task, self.split.train)

    def test_a_task_without_images_has_no_backdoor(self) -> None:
        attack, heart = spec("badnets").attack, Heart()
        assert attack is not None
        first = next(iter(heart.data().values()))
        assert isinstance(first, Split)
        with pytest.raises(SpecError, match="inputs are none"):
            trigger_of(attack, heart, first.train)


class TestInGroups:
    """Two of three groups of three have a liar; the row of each becomes what the liar would send by itself."""

    GROUPS = ((1, 2, 3), (4, 5, 6), (7, 8, 9))

    def test_rows_are_the_means_and_lies_become_the_rows(self) -> None:
        rows = _rows_of(self.GROUPS, HONEST, OWN)
        assert list(rows.honest) == [2]
        assert list(rows.own) == [0, 1]
        assert rows.honest[2] == pytest.approx(
            np.mean([HONEST[node] for node in (7, 8, 9)], axis=0), abs=1e-6
        )
        lies = {0: np.full(SIZE, -3, np.float32), 1: np.linspace(0, 9, SIZE, dtype=np.float32)}
        sent = _filled_up(self.GROUPS, rows, lies, HONEST, OWN)
        assert sent.keys() == OWN.keys()
        after = _rows_of(self.GROUPS, HONEST, sent)
        for group, lie in lies.items():
            assert after.own[group] == pytest.approx(lie, abs=1e-5)

    def test_liars_of_one_group_share_the_change_and_nan_stays_nan(self) -> None:
        groups = ((1, 2, 5), (3, 4, 6, 7, 8, 9))
        rows = _rows_of(groups, HONEST, OWN)
        sent = _filled_up(groups, rows, {0: np.full(SIZE, 2, np.float32)}, HONEST, OWN)
        assert _rows_of(groups, HONEST, sent).own[0] == pytest.approx(np.full(SIZE, 2), abs=1e-5)
        assert sent[2] - OWN[2] == pytest.approx(sent[5] - OWN[5], abs=1e-5)
        spoilt = _filled_up(groups, rows, {0: np.full(SIZE, np.nan, np.float32)}, HONEST, OWN)
        assert np.isnan(spoilt[2]).all()

    def test_without_groups_nothing_is_filled_up(self) -> None:
        rows = _rows_of((), HONEST, OWN)
        assert (dict(rows.honest), dict(rows.own)) == (HONEST, OWN)
        assert _filled_up((), rows, OWN, HONEST, OWN) == OWN


def test_a_run_that_liars_bring_to_a_stop_scores_nothing_and_is_told() -> None:
    def point(name: str, attack: str, accuracy: float | None) -> dict[str, Any]:
        return {
            "name": name,
            "seed": 1,
            "values": {RULE: "mean", ATTACK: attack},
            "done": accuracy is not None,
            "metrics": {} if accuracy is None else {"accuracy": accuracy},
            "loss": 1.0,
        }

    figures = {
        "name": "t",
        "sweep": "s",
        "done": True,
        "metric": "accuracy",
        "stopped": {"c": "no"},
        "points": [
            point("a", "none", 0.9),
            point("b", "ipm", 0.8),
            point("c", "ipm", None),
            point("d", "alie", 0.5),
        ],
    }
    (rule,) = judged(figures)["rules"]
    assert rule["attacks"]["ipm"] == {
        "n": 2,
        "stopped": 1,
        "mean": 0.4,
        "lowest": 0.0,
        "highest": 0.8,
        "attack_success": None,
    }
    assert rule["worst"] == {"attack": "ipm", "mean": 0.4}
    text = table_of(judged(figures)).rows[1].cells[0]
    assert "one run brought to a stop" in text
