"""Letters of equal length from payloads that differ by owner; and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax.wire.letters import Letters

WIDTHS = {0: 12, 3: 20, 4: 7}
# Owner by owner: an owner without any, with several of one stack, of all stacks.
ROWS = {
    0: np.array([[1, -1], [-1, -1], [0, 2]]),
    3: np.array([[0], [-1], [1]]),
    4: np.array([[3, 4, -1], [-1, -1, -1], [0, 1, 2]]),
}
COUNTS = {0: 3, 3: 2, 4: 5}


def payloads():
    rng = np.random.default_rng(0)
    return {
        s: jnp.asarray(rng.integers(1, 256, (COUNTS[s], width)), jnp.uint8)
        for s, width in WIDTHS.items()
    }


def expected(owner, rows):
    """What an owner's letter holds, written byte by byte."""
    parts = [
        np.asarray(rows[s])[j].tobytes()
        for s in WIDTHS
        for j in ROWS[s][owner]
        if j >= 0
    ]  # fmt: skip
    return b"".join(parts)


@pytest.mark.parametrize("owner", range(3))
def test_a_letter_holds_an_owners_payloads_and_zeros(owner):
    rows = payloads()
    letters = Letters(WIDTHS, ROWS, COUNTS)
    assert letters.granule == 1  # 7 bytes are no multiple of anything else
    letter = np.asarray(letters.to_owners(rows)[owner])
    assert len(letter) == len(expected(2, rows))  # the longest one's
    own = expected(owner, rows)
    assert letter.tobytes() == own + bytes(len(letter) - len(own))
    found = letters.at_owner(jnp.asarray(letter), owner)
    for s, table in ROWS.items():
        for place, j in enumerate(table[owner]):
            if j >= 0:
                np.testing.assert_array_equal(found[s][place], rows[s][j])


def test_what_owners_write_everyone_reads():
    rows = payloads()
    letters = Letters(WIDTHS, ROWS, COUNTS)
    written = []
    for owner in range(3):
        mine = {
            s: jnp.stack([rows[s][j] if j >= 0 else 0 * rows[s][0] for j in row])
            for s, table in ROWS.items()
            for row in [table[owner]]
        }
        written.append(letters.from_owner(mine, owner))
    found = letters.at_all(jnp.stack(written))
    for s in WIDTHS:
        np.testing.assert_array_equal(found[s], rows[s])


def test_granules_of_many_bytes_add_next_to_nothing():
    counts = {0: 6}
    rows = {0: np.arange(6).reshape(3, 2)}
    letters = Letters({0: 73732}, rows, counts)  # one bit for 768 × 768, and a scale
    assert letters.granule == 4
    many = Letters({0: 16 * 73732 + 1}, rows, counts)
    assert many.granule > 4
    assert many.length * many.granule <= 2 * (16 * 73732 + 1) * 1.001
