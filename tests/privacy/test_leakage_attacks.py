"""Reconstruction attacks as pure functions: what is recovered from a gradient that is known, and nothing from noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cloister.privacy.audit.leakage import imprinted, invert, match, psnr, recover, ssim


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Sigmoid(), nn.Linear(24, 5))


def records(count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, 1, 6, 6), generator=generator), torch.randint(5, (count,), generator=generator)


def gradient(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(functional.cross_entropy(net(x), y), list(net.parameters())))


class TestImprint:
    def test_records_alone_in_their_bin_are_recovered_exactly(self) -> None:
        x, y = records(32)
        public, _ = records(400, seed=2)
        net = imprinted(model(), public, bins=512, seed=3)
        by_weight, by_bias = gradient(net, x, y)[:2]
        found = match(x.flatten(1).double().numpy(), recover(by_weight.numpy(), by_bias.numpy()))
        measured = (x.flatten(1) @ net.reading.weight[0]).detach()
        places = torch.searchsorted(-net.reading.bias.detach(), measured)
        alone = int((torch.bincount(places) == 1).sum())
        assert alone >= 16
        assert alone - 4 <= found.recovered <= 32  # a gradient in float32 loses few

    def test_noise_on_the_gradient_leaves_nothing(self) -> None:
        x, y = records(32)
        net = imprinted(model(), records(400, seed=2)[0], bins=512, seed=3)
        by_weight, by_bias = (part.numpy() for part in gradient(net, x, y)[:2])
        rng = np.random.default_rng(0)
        scale = 0.01 * np.linalg.norm(by_weight)
        noisy = recover(
            by_weight + scale * rng.normal(size=by_weight.shape),
            by_bias + scale * rng.normal(size=by_bias.shape),
        )
        assert match(x.flatten(1).double().numpy(), np.clip(noisy, 0, 1)).recovered == 0

    def test_nothing_comes_of_a_gradient_of_zeros_or_without_end(self) -> None:
        assert len(recover(np.zeros((8, 4)), np.zeros(8))) == 0
        assert len(recover(np.full((8, 4), np.inf), np.ones(8))) == 0


class TestInversion:
    def test_a_record_is_found_from_its_gradient_and_not_from_another(self) -> None:
        x, y = records(1)
        net = model().requires_grad_(True)
        found = {
            name: invert(
                net, lambda a, b: functional.cross_entropy(a, b, reduction="none"), seen, y,
                shape=(1, 6, 6), low=0.0, high=1.0, seed=4, steps=250, restarts=1, smooth=1e-6,
            )
            for name, seen in (("own", gradient(net, x, y)), ("none", [torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) for p in net.parameters()]))
        }  # fmt: skip
        quality = {
            name: float(psnr(x.flatten().numpy(), one.records.flatten().numpy()))
            for name, one in found.items()
        }
        assert quality["own"] > 30 > 15 > quality["none"]
        assert found["own"].distance < 0.01 < found["none"].distance
        assert 0 <= float(found["own"].records.min()) <= float(found["own"].records.max()) <= 1


class TestLikeness:
    def test_psnr_by_hand(self) -> None:
        assert (
            float(psnr(np.zeros(4), np.full(4, 0.1))) == np.float64(20.0)
            or abs(float(psnr(np.zeros(4), np.full(4, 0.1))) - 20) < 1e-9
        )
        assert float(psnr(np.ones(4), np.ones(4))) == 100.0

    def test_each_candidate_is_matched_once(self) -> None:
        real = np.array([[0.0, 0.0], [0.1, 0.1]])
        found = match(real, np.array([[0.01, 0.01]]))
        assert sorted(found.candidate) == [-1, 0]
        assert found.recovered == 1

    def test_ssim_is_one_for_the_same_image_and_small_for_another(self) -> None:
        one, other = np.random.default_rng(0).random((2, 8, 8))
        assert abs(ssim(one, one) - 1) < 1e-12
        assert ssim(one, other) < 0.4
