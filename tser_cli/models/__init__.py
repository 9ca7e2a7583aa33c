"""Network definitions, each built as an ANN or as an SNN."""
