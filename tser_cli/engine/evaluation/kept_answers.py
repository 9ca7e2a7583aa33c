"""What a run keeps of each image's answers: predictions.npz, and the same of held-out images."""

from __future__ import annotations

from tser_cli.energy.joules import operations
from tser_cli.engine.evaluation.per_timestep import Evaluation, evaluate_split
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime.context import Context
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.models import Classifier
from tser_cli.report.predictions import (
    HELD_OUT,
    PREDICTIONS,
    Predictions,
    Steps,
    write_predictions,
)


def answered(evaluation: Evaluation, can_stop: bool) -> Predictions:
    """Return the predictions of a counted pass; what early exit needs only where it is possible."""
    answers, counts = evaluation.answers, evaluation.counts
    assert answers is not None and counts is not None, "a counted pass"
    macs_T, acs_TI = operations(counts)
    steps = Steps(
        answers.confidence_cumulative_TI.float().numpy().T,
        macs_T.cumsum(),
        acs_TI.cumsum(axis=0).T,
    )
    return Predictions(
        answers.labels_I.numpy(),
        answers.prediction_TI.T.numpy(),
        answers.prediction_cumulative_TI.T.numpy(),
        steps if can_stop else None,
    )


def keep_answers(
    run: Run,
    model: Classifier,
    context: Context,
    test: Evaluation,
    stop: StopRequest | None = None,
) -> None:
    """Write the answers for the test images, and measure and write those for held-out ones.

    A threshold of early exit is chosen on the latter. All processes measure; rank 0 writes. Raises
    Interrupted or RunError.
    """
    passes = {PREDICTIONS: test}
    if context.config.data.validation_fraction and model.steps_alone:
        passes[HELD_OUT] = evaluate_split(
            model, context, "validation", test.timesteps, stop=stop, count=True
        )

    def write() -> None:
        for name, evaluation in passes.items():
            found = answered(evaluation, model.steps_alone)
            write_predictions(run.folder / name, **vars(found))

    context.runtime.on_main(write)
