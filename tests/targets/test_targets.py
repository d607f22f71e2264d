"""Target tables: what they refuse, what their marginals and joint fits are, and what draws from them realise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpf_chains.core.sampling import IIDSampler, QuotaSampler
from mpf_chains.errors import BenchmarkError, InvalidInput, NotConverged
from mpf_chains.targets.files import read_targets, read_winogender_targets
from mpf_chains.targets.marginals import fit_joint
from mpf_chains.targets.perspectives import attribute_perspectives
from mpf_chains.targets.table import TargetTable
from mpf_chains.targets.templates import fill

SHARED = Path(__file__).parents[3] / "shared/data"
GENDER = {"gender": ("female", "male")}
RACE = {"race": ("white", "black", "asian", "hispanic", "indigenous")}
BOTH = GENDER | RACE


def shares(*sizes: int) -> st.SearchStrategy[Any]:
    """Distributions without zeros."""
    n = int(np.prod(sizes))
    numbers = st.lists(st.floats(0.02, 1), min_size=n, max_size=n)
    return numbers.map(lambda values: np.reshape(values, sizes) / np.sum(values))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, ["nurse"], [[1.0]]), "needs an attribute"),
        (({"gender": ("female",)}, ["nurse"], [[1.0]]), "1 classes; at least 2"),
        (({"gender": ("female", "female")}, ["nurse"], [[0.5, 0.5]]), "more than once: 'female'"),
        ((GENDER, ["nurse", "nurse"], [[0.5, 0.5]] * 2), "contexts given more than once: 'nurse'"),
        ((GENDER, ["nurse", "Nurse"], [[0.5, 0.5]] * 2), "'Nurse', 'nurse' differ by upper and lower case only"),
        ((GENDER, [" "], [[0.5, 0.5]]), "not blank"),
        ((GENDER, "nurse", [[0.5, 0.5]] * 5), "contexts 'nurse'"),
        ((GENDER, [], np.zeros((0, 2))), "0 contexts"),
        ((GENDER, ["nurse"], [0.5, 0.5]), r"shape \(2,\)"),
        ((GENDER, ["nurse"], [["half", "half"]]), "must be numbers"),
        ((GENDER, ["nurse"], [[1.2, -0.2]]), r"'male' in context 'nurse' is -0\.2"),
        ((GENDER, ["nurse"], [[float("nan"), 1]]), "'female' in context 'nurse' is nan"),
        ((GENDER, ["chef", "nurse"], [[0.5, 0.5], [0.5, 0.4]]), r"'nurse' sum to 0\.9; they must"),
        ((GENDER, ["nurse"], [[90, 10]]), "shares, not percentages"),
        (
            ({"a": ("x", "x, y"), "b": ("y, z", "z")}, ["c"], [[0.25] * 4]),
            "joint classes given more than once: 'x, y, z'",
        ),
    ],
)
def test_a_wrong_table_is_refused_by_context_and_class(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        TargetTable(*arguments)


def test_a_table_from_mappings_is_read_by_name() -> None:
    table = TargetTable.of({"nurse": {("male", "asian"): 0.25, "female, white": 0.75}}, BOTH)
    assert table["nurse"]["male, asian"] == 0.25 and table["nurse"]["female, black"] == 0
    assert table.attribute == "gender × race" and len(table.classes) == 10
    with pytest.raises(InvalidInput, match=r"'nurse' has a share for 'femal'; the classes are 'female', 'male'"):
        TargetTable.of({"nurse": {"femal": 1.0}}, GENDER)
    with pytest.raises(InvalidInput, match=r"no context 'nurs'; near it are 'nurse'.*infer"):
        table["nurs"]
    assert table.digest == TargetTable(BOTH, ("nurse",), table.joint).digest
    assert table.digest != TargetTable.uniform(["nurse"], BOTH).digest
    with pytest.raises(ValueError, match="read-only"):
        table.joint[0, 0, 0] = 1


@given(shares(2, 5), shares(2, 5))
def test_a_marginal_is_the_sum_over_the_other_attributes(one: Any, other: Any) -> None:
    table = TargetTable(BOTH, ("nurse", "chef"), [one, other])
    race = table.marginal("race")
    assert race.attributes == RACE
    assert race["chef"]["asian"] == pytest.approx(table["chef"]["female, asian"] + table["chef"]["male, asian"])
    assert table.marginal("race", "gender").digest == table.digest
    assert table.select(["chef"])["chef"] == table["chef"]
    with pytest.raises(InvalidInput, match="no attribute 'age'"):
        table.marginal("age")


@given(shares(2), shares(5), shares(2, 5))
def test_a_joint_fit_has_the_marginals_and_the_association_of_its_seed(gender: Any, race: Any, seed: Any) -> None:
    marginals = [TargetTable(GENDER, ("nurse",), [gender]), TargetTable(RACE, ("nurse",), [race])]
    fit = fit_joint(marginals, TargetTable(BOTH, ("everybody",), [seed]))
    joint = fit.table.joint[0]
    assert joint.sum(axis=1) == pytest.approx(gender, abs=1e-11)
    assert joint.sum(axis=0) == pytest.approx(race, abs=1e-11)
    odds = joint[0, :-1] * joint[1, 1:] / (joint[0, 1:] * joint[1, :-1])
    assert odds == pytest.approx(seed[0, :-1] * seed[1, 1:] / (seed[0, 1:] * seed[1, :-1]), rel=1e-6)
    independent = fit_joint(marginals)
    assert independent.table.joint[0] == pytest.approx(np.outer(gender, race), abs=1e-12)
    assert independent.error <= 1e-12 and independent.sweeps <= 2


def test_overlapping_marginals_are_fitted() -> None:
    generator = np.random.default_rng(0)
    attributes = {"a": ("0", "1"), "b": ("0", "1", "2"), "c": ("0", "1")}
    truth, seed = (generator.dirichlet(np.ones(12)).reshape(1, 2, 3, 2) for _ in range(2))
    table = TargetTable(attributes, ("x",), truth)
    pairs = [table.marginal("a", "b"), table.marginal("c", "b"), table.marginal("a", "c")]
    shuffled = TargetTable({name: attributes[name] for name in "cab"}, ("x",), seed.transpose(0, 3, 1, 2))
    fit = fit_joint(pairs, shuffled)
    joint = fit.table.joint[0]
    for axis in range(3):
        assert joint.sum(axis) == pytest.approx(truth[0].sum(axis), abs=1e-11)
    factor = np.log(joint / seed[0])  # the nearest table is the seed times factors of two attributes each
    interaction = factor - factor.mean(0) - factor.mean(1)[:, None] - factor.mean(2)[..., None]
    interaction += (
        factor.mean((0, 1)) + factor.mean((0, 2))[:, None] + factor.mean((1, 2))[:, None, None] - factor.mean()
    )
    assert interaction == pytest.approx(np.zeros((2, 3, 2)), abs=1e-9)
    assert fit.divergence["x"] == pytest.approx(float((joint * factor).sum()))


def test_zeros_of_the_seed_stay_and_what_they_force_is_found() -> None:
    gender = TargetTable.of({"nurse": {"female": 0.6, "male": 0.4}}, GENDER)
    age = TargetTable({"age": ("young", "middle", "old")}, ("nurse",), [[0.4, 0.35, 0.25]])
    attributes = {**gender.attributes, **age.attributes}
    # Young men are 0.4 by the first zeros, which leaves nothing for men of another age: scaling alone takes for ever.
    seed = TargetTable(attributes, ("all",), [[[0, 0.3, 0.2], [0.2, 0.2, 0.1]]])
    fit = fit_joint([gender, age], seed)
    assert fit.table.joint[0] == pytest.approx(np.array([[0, 0.35, 0.25], [0.4, 0, 0]]), abs=1e-12) and fit.sweeps < 5
    impossible = TargetTable(attributes, ("all",), [[[0, 0.3, 0.2], [0, 0.3, 0.2]]])
    with pytest.raises(InvalidInput, match="context 'nurse' has these marginals: the seed has 2 zeros"):
        fit_joint([gender, age], impossible)


def test_marginals_that_do_not_fit_together_are_refused_by_name() -> None:
    gender = TargetTable.of({"nurse": {"female": 0.6, "male": 0.4}}, GENDER)
    race = TargetTable.uniform(["nurse"], RACE)
    joint = TargetTable.uniform(["nurse"], BOTH)
    with pytest.raises(InvalidInput, match=r"'nurse' the share of 'female' is 0\.6 by that of gender and 0\.5"):
        fit_joint([gender, joint])
    skewed = np.array([[0.3, 0.1], [0.2, 0.4]])
    two = {"gender": GENDER["gender"], "age": ("young", "old")}
    turned = TargetTable({"age": two["age"], "gender": two["gender"]}, ("nurse",), [skewed])
    with pytest.raises(InvalidInput, match=r"the share of 'female, old' is 0\.1 by that of gender × age and 0\.2 by"):
        fit_joint([TargetTable(two, ("nurse",), [skewed]), turned])
    assert fit_joint([TargetTable(two, ("nurse",), [skewed.T]), turned]).table["nurse"]["male, young"] == 0.1
    with pytest.raises(InvalidInput, match="'chef', 'nurse' are in some only"):
        fit_joint([gender, TargetTable.uniform(["chef"], RACE)])
    with pytest.raises(InvalidInput, match="different classes of 'gender'"):
        fit_joint([gender, TargetTable.uniform(["nurse"], {"gender": ("male", "female")})])
    with pytest.raises(InvalidInput, match=r"The seed is a table of gender; the marginals are of gender × race"):
        fit_joint([gender, race], gender)
    with pytest.raises(InvalidInput, match="no marginals"):
        fit_joint([])
    xor = [[[0.0, 0.5], [0.5, 0.0]]], [[[0.5, 0.0], [0.0, 0.5]]]
    names = dict.fromkeys("abc", ("0", "1"))
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    odd = [
        TargetTable({name: names[name] for name in pair}, ("x",), xor[0 if pair == ("a", "c") else 1]) for pair in pairs
    ]
    with pytest.raises(InvalidInput, match=r"No joint table of context 'x' has these marginals\."):
        fit_joint(odd)  # a = b = c and a ≠ c, though each two marginals agree
    with pytest.raises(NotConverged, match="tolerance"):
        fit_joint([joint.marginal("gender"), race], tolerance=-1.0)


@pytest.mark.parametrize("n", [40, 100])
def test_quota_draws_realise_the_joint_shares_and_their_marginals(n: int) -> None:
    generator = np.random.default_rng(n)
    contexts = tuple(f"occupation {i}" for i in range(30))
    table = TargetTable(BOTH, contexts, generator.dirichlet(np.ones(10), 30))
    errors: dict[str, list[float]] = {}
    for name, sampler in (("quota", QuotaSampler()), ("iid", IIDSampler())):
        for i, context in enumerate(contexts):
            drawn = [table.draw(context, sampler, key=str(k)) for k in range(n)]
            counts = np.array([drawn.count(each) for each in table.classes])
            if name == "quota":
                assert (np.abs(counts - n * table.flat[i]) < 1).all()
            realised = TargetTable(BOTH, (context,), counts[None] / n)
            for attribute in BOTH:
                gap = realised.marginal(attribute).flat[0] - table.marginal(attribute).flat[i]
                errors.setdefault(f"{name} {attribute}", []).append(float(np.abs(gap).mean()))
    means = {name: float(np.mean(each)) for name, each in errors.items()}
    assert means["quota gender"] * n < 0.9 and means["quota race"] * n < 0.6
    assert means["iid gender"] > 3 * means["quota gender"] and means["iid race"] > 3 * means["quota race"]


def test_files_of_both_layouts_give_the_same_table(tmp_path: Path) -> None:
    wide, long = tmp_path / "wide.csv", tmp_path / "long.tsv"
    wide.write_text('\ufeffjob,female,male,source\n"nurse",90,10,BLS\n\nchef,25.0,75,\n', "utf-8")
    long.write_text(
        "context\tgender\tshare\nnurse\tfemale\t0.9\nnurse\tmale\t0.1\nchef\tmale\t.75\nchef\tfemale\t25e-2\n"
    )
    one = read_targets(wide, GENDER, context="job", total=100)
    assert one.weights == read_targets(long, GENDER).weights
    joint = tmp_path / "joint.csv"
    joint.write_text("context,race,gender,share\nnurse,asian,female,0.25\nnurse,white,male,0.75\n")
    assert read_targets(joint, BOTH).marginal("gender")["nurse"] == {"female": 0.25, "male": 0.75}


FILES = {
    "missing column": ("job,female\nnurse,1\n", r":1: the header has no column 'context', 'male'"),
    "percentages": ("context,female,male\nnurse,90,10\n", r":2:female: '90' is no number from 0 to 1"),
    "wrong sum": ("context,female,male\nnurse,.5,.5\nchef,.5,.4\n", r":3: the shares of 'chef' sum to 0\.9"),
    "negative": ("context,female,male\nnurse,1,-0.1\n", r":2:male: '-0\.1'"),
    "text": ("context,female,male\nnurse,1,n/a\n", r":2:male: 'n/a'"),
    "not finite": ("context,female,male\nnurse,nan,1\n", r":2:female: 'nan'"),
    "twice": ("context,female,male\nnurse,1,0\nnurse,1,0\n", r":3:context: 'nurse' has a row already, line 2"),
    "share twice": ("context,gender,share\nnurse,male,1\nnurse,male,0\n", r":3: the share of 'male' in 'nurse'"),
    "class": ("context,gender,share\nnurse,men,1\n", r":2:gender: 'men' is no class of 'gender'"),
    "no context": ("context,female,male\n ,1,0\n", r":2:context: the cell is empty"),
    "cells": ("context,female,male\nnurse,1\n", r":2: the row has 2 cells; the header has 3.*comma"),
    "quote": ('context,female,male\n"nurse,1,0\n', r"not CSV"),
    "column twice": ("context,female,female\nnurse,1,0\n", r":1: a column is given more than once"),
    "empty": ("\n \n", r"is empty"),
    "header only": ("context,female,male\n", r"header and no rows"),
    "NUL": ("context,female,male\nnu\0rse,1,0\n", r"NUL"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_wrong_file_is_refused_by_line(tmp_path: Path, kind: str) -> None:
    text, message = FILES[kind]
    file = tmp_path / "targets.csv"
    file.write_text(text, "utf-8")
    with pytest.raises(BenchmarkError, match=message) as raised:
        read_targets(file, GENDER)
    assert str(file) in str(raised.value)


def test_other_wrong_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "targets.csv"
    with pytest.raises(BenchmarkError, match="cannot be read"):
        read_targets(file, GENDER)
    file.write_bytes("context,female,male\nköchin,1,0\n".encode("latin-1"))
    with pytest.raises(BenchmarkError, match="not UTF-8"):
        read_targets(file, GENDER)
    file.write_text("context,female,male\nnurse,1,0\n")
    with pytest.raises(BenchmarkError, match="several attributes needs the column 'share'"):
        read_targets(file, BOTH)
    with pytest.raises(BenchmarkError, match="'occupation' and 'bls_pct_female'"):
        read_winogender_targets(file)
    with pytest.raises(InvalidInput, match="'ons'"):
        read_winogender_targets(file, source="ons")


def test_an_occupation_is_in_the_statistics_once(tmp_path: Path) -> None:
    rows = "occupation\tbergsma_pct_female\tbls_pct_female\nnurse\t50\t90\nchef\t50\t20\nnurse\t50\t10\n"
    (tmp_path / "occupations-stats.tsv").write_text(rows)
    with pytest.raises(BenchmarkError, match=r":4:occupation: 'nurse' has a row already, line 2"):
        read_winogender_targets(tmp_path)


def test_classes_are_known_however_they_are_written() -> None:
    plain, other = (
        attribute_perspectives(TargetTable.uniform(["nurse"], {"gender": classes}))
        for classes in (("female", "male"), ("Women", "men"))
    )
    assert other.names == ("Women", "men")
    assert other["Women"].instruction == plain["female"].instruction


@pytest.mark.parametrize("context", [
    "an engineer", "an hour", "an honest clerk", "an honorary consul", "an heir", "an umpire", "an usher",
    "an oncologist", "an uninvited guest", "a university", "a unicorn breeder", "a user", "a urologist", "a European",
    "a one-legged man", "a house", "a nurse",
])  # fmt: skip
def test_the_article_goes_by_the_sound(context: str) -> None:
    article, _, name = context.partition(" ")
    assert fill("{a_context}", name) == context
    assert fill("{A_context}.", name) == f"{article.capitalize()} {name}."


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared folder beside the repository")
def test_winogender_has_sixty_occupations() -> None:
    table = read_winogender_targets(SHARED / "winogender")
    assert len(table) == 60 and table["technician"] == pytest.approx({"female": 0.4034, "male": 0.5966})
    assert read_winogender_targets(SHARED / "winogender", source="bergsma")["technician"]["female"] == pytest.approx(
        0.0942
    )
