"""A session of a thousand sites, each at the largest value that the manifest admits."""

import numpy as np
import pytest

from cloister.privacy.homomorphic import KeyAuthority
from parties import Parties


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_the_sum_of_a_thousand_sites_is_exact_at_the_worst_case(sign: int) -> None:
    parties = Parties(1000)
    keeper = KeyAuthority.in_memory(parties.keeper, parties.consortium)
    session = parties.session(keeper, size=8192, least=900, threshold=600)
    largest = session.manifest.largest
    assert 1000 * largest > 0.999 * (1 << 25)
    values = np.full(8192, sign * largest, dtype=np.int64)
    values[::3] *= -1
    for name in parties.names:
        session.put(name, values)
    found = keeper.decrypt(session.request())
    keeper.close()
    assert np.array_equal(found, 1000 * values)
