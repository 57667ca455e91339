"""What one update gives away of the records behind it: reconstruction attacks as pure functions, and how near they come."""

from __future__ import annotations

from cloister.privacy.audit.leakage.imprint import Imprint, imprinted, recover
from cloister.privacy.audit.leakage.inversion import Inverted, invert
from cloister.privacy.audit.leakage.likeness import Match, match, psnr, ssim

__all__ = ["Imprint", "Inverted", "Match", "imprinted", "invert", "match", "psnr", "recover", "ssim"]
