"""The table and the figure say what the calibration holds, and ask for validation where there is none."""

import pytest

from mpf_chains import Benchmark, MPFCalibrator, Objective
from mpf_chains.errors import InvalidInput
from mpf_chains.reporting import plot_calibrations, validation_table
from mpf_chains.testing import BiasedChatModel

pytestmark = pytest.mark.filterwarnings("ignore::mpf_chains.errors.MPFWarning")


def calibration(**options):
    options = {"validate": ["normal", "sampled", "aggregated"], **options}
    benchmark = Benchmark.builtin("university", ["ETH Zurich", "University of Delhi"]).select(per_entity=10)
    return MPFCalibrator(model=BiasedChatModel(), n=2, bins=5, resamples=20, progress=False, **options).invoke(
        benchmark
    )


def test_table_shows_every_system_once_beside_the_floor():
    found = {"sampled": calibration(), "paper": calibration(objective=Objective(beta=1.0), solver="slsqp")}
    lines = validation_table(found).splitlines()
    names = [line.split("  ")[0] for line in lines]
    assert names == [
        "system", "target", "normal", "sampled", "aggregated (sampled)", "sampled (paper)",
        "aggregated (paper)", "noise floor of KL",
    ]  # fmt: skip
    normal = found["sampled"].validation["features"]["sentiment"]["(pooled)"]["systems"]["normal"]
    assert f"{normal['kl']['value']:.3f}" in lines[2] and f"{normal['calibration']['value']:.3f}" in lines[2]


def test_figure_has_a_panel_for_the_distributions_and_one_per_calibration(tmp_path):
    figure = plot_calibrations({"a": calibration(), "b": calibration(mode="aggregated")}, tmp_path / "f.png", title="T")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    distributions, *weights = figure.axes
    labels = [text.get_text() for text in distributions.get_legend().get_texts()]
    assert labels[0].startswith("target (mean") and len(labels) == 6 and len(weights) == 2
    assert [tick.get_text() for tick in weights[0].get_yticklabels()] == list(
        calibration(validate=()).perspectives.names
    )


def test_a_calibration_that_was_not_validated_is_refused():
    unvalidated = calibration(validate=())
    with pytest.raises(InvalidInput, match="has no validation of feature 'sentiment'"):
        validation_table({"x": unvalidated})
    with pytest.raises(InvalidInput, match="validate="):
        plot_calibrations({"x": unvalidated})
