"""How sure several numbers are together: against simulation, and what cannot be is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.covariance import Covariance, slopes


@st.composite
def covariances(draw: st.DrawFn) -> Covariance:
    """Of one to five parameters of very different sizes, some without any error."""
    count = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    mixed = rng.normal(size=(count, draw(st.integers(1, 5)))) * 10.0 ** rng.integers(-4, 3, (count, 1))
    mixed *= rng.random((count, 1)) > 0.2
    return Covariance.of("abcde"[:count], mixed @ mixed.T)


@given(covariances())
def test_independent_sources_make_it_up_again(known: Covariance) -> None:
    scale = np.outer(*[[s or 1.0 for s in known.sigma.values()]] * 2)
    np.testing.assert_allclose(known.factor @ known.factor.T / scale, known.matrix / scale, atol=1e-6)


@given(covariances())
def test_part_of_it_and_units(known: Covariance) -> None:
    assert known.only(known.names) == known
    assert known.only(["b", "nothing"]).sigma == {name: s for name, s in known.sigma.items() if name == "b"}
    doubled = known.scaled({"a": 2.0})
    assert doubled.sigma == {name: pytest.approx(s * (2 if name == "a" else 1)) for name, s in known.sigma.items()}


def test_more_error_and_new_parameters() -> None:
    known = Covariance.of("ab", [[4.0, 1.0], [1.0, 9.0]]).plus({"b": 4.0, "c": 2.0})
    assert known == Covariance.of("abc", [[4, 1, 0], [1, 25, 0], [0, 0, 4]])
    assert known.beside(Covariance.independent({"c": 7.0, "d": 3.0})).sigma == {**known.sigma, "d": 3.0}


def test_what_is_measured_by_means_of_others_goes_with_them() -> None:
    """Drawn: c is measured as 2 a - b, with an error of its own."""
    known = Covariance.of("abc", [[4.0, 1.0, 3.0], [1.0, 9.0, 0.0], [3.0, 0.0, 16.0]])
    again = known.measured("c", "ab", [[2.0, -1.0]], [[0.25]])
    a, b = np.random.default_rng(0).multivariate_normal([0, 0], known.only("ab").matrix, 400_000).T
    drawn = np.cov([2 * a - b + np.random.default_rng(1).normal(0, 0.5, a.size), a, b])
    assert again.names == ("c", "a", "b")
    np.testing.assert_allclose(again.matrix, drawn, atol=0.15)


def test_slopes_by_hand() -> None:
    known = Covariance.independent({"a": 0.1, "b": 0.0})
    found = slopes(lambda by: np.array([3 * by.get("a", 0.0), math.sin(by.get("b", 0.0))]), known)
    np.testing.assert_allclose(found, [[3, 0], [0, 1]], atol=1e-6)
    assert slopes(lambda by: np.zeros(2), Covariance()).shape == (2, 0)


@pytest.mark.parametrize(
    ("names", "rows", "said"),
    [
        ("aa", ((1.0, 0.0), (0.0, 1.0)), "twice"),
        ("ab", ((1.0, 0.0),), "2 rows"),
        ("ab", ((1.0, 0.0), (0.0,)), "2 rows"),
        ("ab", ((1.0, 2.0), (2.0, 1.0)), "no covariance"),
        ("ab", ((1.0, 0.5), (0.1, 1.0)), "no covariance"),
        ("a", ((-1.0,),), "at least 0"),
        ("a", ((math.nan,),), "finite"),
    ],
)
def test_what_is_none_is_refused(names: str, rows: tuple[tuple[float, ...], ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Covariance(tuple(names), rows)
