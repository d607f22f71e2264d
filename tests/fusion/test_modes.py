"""Weights fitted for one mode are not silently used in the other."""

import warnings

import pytest

from mpf_chains import Calibration, PerspectiveFusion, PerspectiveRouter, PerspectiveSet
from mpf_chains.errors import DataWarning
from mpf_chains.testing import BiasedChatModel


@pytest.mark.parametrize(("kind", "mode"), [(PerspectiveRouter, "sampled"), (PerspectiveFusion, "aggregated")])
def test_a_calibration_for_the_other_mode_warns(kind, mode):
    members = PerspectiveSet.builtin("sentiment")
    row = {"positive": 0.5, "neutral": 0.5, "negative": 0.0}
    for calibrated in ("sampled", "aggregated"):
        weights = Calibration(members, calibrated, ("sentiment",), {"X": row}, row)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind(model=BiasedChatModel(), weights=weights)
        assert [w.category for w in caught] == ([] if calibrated == mode else [DataWarning])
