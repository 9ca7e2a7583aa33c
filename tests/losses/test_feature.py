"""feature and kd_feature by hand."""

from __future__ import annotations

import pytest
import torch

from tests.losses.by_hand import (
    AVERAGED,
    CE_OF_MEAN,
    IMAGES,
    TEACHER,
    check_weights,
    kl,
    mean,
    outputs,
    squared_error,
    terms_of,
)
from tser_cli.losses.base import Outputs, stage_features


def test_feature_and_kd_feature_by_hand() -> None:
    error = mean([squared_error(0) / 24, squared_error(1) / 8])
    expected = {"ce": CE_OF_MEAN, "feature": error, "loss": CE_OF_MEAN + 100 * error}
    assert terms_of("feature", outputs()) == pytest.approx(expected, abs=1e-9)
    kd = mean([kl(TEACHER[n], AVERAGED[n], 2.0) for n in range(IMAGES)])
    expected |= {"kd": kd, "loss": CE_OF_MEAN + kd + 100 * error}
    assert terms_of("kd_feature", outputs()) == pytest.approx(expected, abs=1e-9)


def test_the_weights_they_read() -> None:
    check_weights("feature", {"feature_weight": 100.0})
    check_weights("kd_feature", {"temperature": 2.0, "kd_weight": 1.0, "feature_weight": 100.0})


def test_missing_features_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="needs features"):
        stage_features(Outputs(torch.zeros(1, 1, 2), torch.tensor([0])))
