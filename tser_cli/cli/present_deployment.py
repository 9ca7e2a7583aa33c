"""Show what tser export, quantize and predict did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tser_cli.cli import present, present_json

if TYPE_CHECKING:
    from rich.table import Table

    from tser_cli.engine.commands.export import Exported
    from tser_cli.engine.commands.predict import Prediction, Predictions
    from tser_cli.engine.commands.quantize import QuantizeResult
    from tser_cli.export.verify import Check


def show_export(exported: Exported) -> None:
    """The table of checks, and what was written."""
    out = present.output()
    if exported.checks:
        out.print(checks_table(exported.checks))
        show_silent(exported.checks[0])
    if exported.checks is None:
        out.print("not verified: --no-verify")
    if exported.change is not None:
        out.print(f"integer potentials: {exported.change.sentence()}", soft_wrap=True)
    if not exported.holds:
        out.print(f"the check does not hold; {exported.path} was not written", soft_wrap=True)
        return
    out.print(f"file: {exported.path} ({exported.size / 2**20:.1f} MiB)", soft_wrap=True)
    out.print(f"checks: {exported.path}.verified.json", soft_wrap=True)
    out.print(f"model card: {exported.card}", soft_wrap=True)


def checks_table(checks: tuple[Check, ...]) -> Table:
    """Return a row a program: what was compared, and whether it agrees."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    images = checks[0].comparison.images
    title = f"the same spikes in other programs, {images} test images"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("program", overflow="fold")
    for column in ("compared", "differing", "ties", "logits", "holds"):
        table.add_column(column, justify="right", no_wrap=True)
    for check in checks:
        c, library = check.comparison, check.target.library
        table.add_row(
            f"{library} {check.versions[check.target.packages[0]]}, {check.target.precision}",
            *(f"{number:,}" for number in (c.values, c.differing)),
            f"{c.ties:,}" + (f" ({c.parted} images part)" if c.parted else ""),
            f"{max(c.logits_difference):.0e}",
            "yes" if check.holds else "NO",
        )
    return table


def show_silent(check: Check) -> None:
    """Say which layers never spiked: what such a layer feeds was given nothing to compare."""
    silent, layers = check.comparison.silent, check.comparison.layers
    if silent:
        shown = ", ".join(silent[:3]) + (", ..." if len(silent) > 3 else "")
        present.progress().warn(
            f"{len(silent)} of {len(layers)} layers never spiked on these images ({shown}): the "
            "check says nothing of the weights behind them. Take more (--images), or train longer"
        )


def show_predictions(predictions: Predictions, as_json: bool) -> None:
    """A line an image, or JSON; what could not be read goes to standard error."""
    from tser_cli.engine.commands.predict import Prediction

    if as_json:
        present_json.write(predictions.as_json())
    else:
        out = present.output()
        for answer in predictions.answers:
            if isinstance(answer, Prediction):
                out.print(prediction_line(answer), soft_wrap=True, markup=False, highlight=False)
        if predictions.table is not None:
            out.print(f"table: {predictions.table}", soft_wrap=True)
    for unread in predictions.unread:
        present.messages().print(f"error: {unread.error}", soft_wrap=True, markup=False)


def prediction_line(answer: Prediction) -> str:
    """`image.png: 7, confidence 0.61 0.88 0.97, sure after 3 steps, 1,234 SOP, 576 MAC`."""
    confidences = " ".join(f"{value:.2f}" for value in answer.confidence)
    steps = f"{answer.stop_t} step{'' if answer.stop_t == 1 else 's'}"
    counted = ""
    if answer.sop_value is not None:
        counted = f", {answer.sop_value:,} SOP, {answer.macs:,} MAC"
    return f"{answer.image}: {answer.name}, confidence {confidences}, stops after {steps}{counted}"


def show_quantized(quantized: QuantizeResult) -> None:
    """Show the new run, and what it changed against its parent."""
    result = quantized.result
    exporting = f"tser export --run {result.folder} --format onnx --output FILE"
    present.show_run(result, [exporting + present.plugin_flags()])
    out = present.output()
    if quantized.parent_accuracy is not None:
        change = 100 * (result.accuracy - quantized.parent_accuracy)
        out.print(
            f"before: {quantized.parent_accuracy:.2%} ({change:+.2f} points now)", soft_wrap=True
        )
    if result.energy_pj is not None:
        out.print(
            f"energy an image: {result.energy_pj / 1e6:.4g} uJ ({quantized.profile}); the same "
            f"operations in fp32: {quantized.float_energy_pj / 1e6:.4g} uJ",
            soft_wrap=True,
        )
    out.print(f"parent: {quantized.parent}", soft_wrap=True)
