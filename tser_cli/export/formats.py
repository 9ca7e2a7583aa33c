"""The file formats by name."""

from __future__ import annotations

from tser_cli.errors import ExportError, unknown
from tser_cli.export import nir_file, onnx_file, safetensors_file
from tser_cli.export.graph import Graph

FORMATS = ("nir", "onnx", "safetensors")
FLOAT, INTEGER = "float", "integer"


def check_format(name: str, stateful: bool, potentials: str = FLOAT) -> None:
    """Raise ExportError for an unknown format, or for potentials as inputs or as integers in
    another than ONNX.
    """
    if potentials not in (FLOAT, INTEGER):
        raise ExportError(unknown("kind of potentials", potentials, (FLOAT, INTEGER)))
    if potentials == INTEGER and name != "onnx":
        raise ExportError(
            f"--potentials integer belongs to --format onnx; the neurons of {name} are equations "
            "of floating point"
        )
    if name not in FORMATS:
        raise ExportError(unknown("format", name, FORMATS))
    if stateful and name != "onnx":
        raise ExportError(
            f"--stateful belongs to --format onnx; {name} describes one step already, whose state "
            "the reader keeps"
        )


def content(graph: Graph, name: str, stateful: bool) -> bytes:
    """Return the file of `graph` in a format. Raises ExportError where the format can't hold it."""
    check_format(name, stateful)
    if name == "onnx":
        return onnx_file.content(graph, stateful)
    return nir_file.content(graph) if name == "nir" else safetensors_file.content(graph)
