"""A few steps of each kind of coder against SAELens and dictionary_learning, in environments that benchmarks/peers/environments.py makes
(pytest -m peers). What CI compares with instead is in test_kinds_against_dense.py."""

import pytest

from peers import environments, same_steps

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("peer", same_steps.SCRIPTS)
def test_losses_gradients_and_weights_are_the_other_programs(peer: str) -> None:
    try:
        environments.python(peer)
    except SystemExit as missing:
        pytest.fail(str(missing))  # and says how to make it
    found = same_steps.compared([case for case in same_steps.CASES if case.peer == peer], 5)
    assert found
    assert {str(case): own for case, own in found.items() if same_steps.too_large(own)} == {}
