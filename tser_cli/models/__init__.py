"""Network definitions, each built as an ANN or as an SNN."""

from tser_cli.models.base import Classifier, build_model, check_fits

__all__ = ["Classifier", "build_model", "check_fits"]
