"""The model knows one thread, which has no other to hand a suspect to."""

from __future__ import annotations

import pytest

from diskq.base import limits


@pytest.fixture(autouse=True, scope="package")
def no_hand_over():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "HAND_OVER_SECONDS", 0)
        yield
