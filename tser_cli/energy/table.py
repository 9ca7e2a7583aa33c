"""The rows of energy.csv and its sidecar.

A row for every layer and time step, one for every layer over all steps, and the totals of both.
Figures are means per image, and every count of a row "all" or "TOTAL" is the sum of the rows it
stands for; `firing_rate` and `ratio_snn_ann` are quotients of the counts of their own row. A layer
that is computed once an image has its cost at t = 1 and zeros after. The columns of the ANN belong
to one pass through the ANN of the same shape and are the same at every t, so that the ratios of
the steps add up to the ratio of all of them. Of frames of events that pass is on their mean; the
last two columns are a pass on each frame, and empty for images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tser_cli.energy import joules
from tser_cli.energy.counts import Counts, FloatArray, LayerCounts
from tser_cli.energy.prices import DEFAULT_PROFILE, PROFILES, Profile
from tser_cli.report.csv_files import ALL, TOTAL

NOTES = (
    "Counted: synaptic operations and multiply-accumulates of convolutions and linear layers.",
    "Not counted: batch norm (folded into the weights), biases, pooling, additions of residual "
    "branches. Neuron updates are a column of their own and in no energy of the table.",
    "sop_value is the headline: an input of 2 costs two additions; sop_events counts it once.",
    "macs and ann_macs leave out multiplications with the zeros of the padding, as the synaptic "
    "operations do. sop_formula and energy_formula_pj, the figures of most papers, count them.",
    "firing_rate is the share of non-zero inputs; those of a MAC layer are values, not spikes.",
    "ann_macs is one pass through the ANN of the same shape; its inputs count as non-zero.",
)
ONCE = "A stem computed once an image is listed at t = 1."
OF_FRAMES = (
    "The first layer is fed with counts of events, so that it adds: a count of 3 is three "
    "accumulates in sop_value, and one in sop_events.",
    "ann_macs is the ANN on the mean of the frames, ann_frames_macs the ANN on each of them.",
)


@dataclass(frozen=True)
class Labels:
    """What tells a table apart: the run, its data set, the weights' hash and the computed dtype."""

    run: str
    dataset: str
    model_hash: str
    dtype: str


def energy_rows(counts: Counts, profile: Profile, labels: Labels) -> list[dict[str, Any]]:
    """Return the rows of energy.csv, layer by layer and the totals last."""
    layers = [
        (
            {
                "layer": layer.layer.name,
                "type": layer.layer.type,
                "input_kind": layer.layer.input_kind,
                "op": "AC" if layer.layer.accumulates else "MAC",
            },
            step_means(layer, profile),
        )
        for layer in counts.layers
    ]
    ann = [layer.layer.macs for layer in counts.layers]
    # A row like those of layers, so that columns and totals come from the same code.
    total = {name: np.sum([means[name] for _, means in layers], axis=0) for name in layers[0][1]}
    layers.append(({"layer": TOTAL, "type": "total", "input_kind": "", "op": ""}, total))
    common = {
        "run": labels.run,
        "dataset": labels.dataset,
        "profile": profile.name,
        "timesteps": counts.timesteps,
        "images": counts.images,
    }
    rows = []
    for (description, means), macs in zip(layers, [*ann, sum(ann)], strict=True):
        for t in range(1, counts.timesteps + 2):
            # The sums over steps come last, in the place of a step T + 1.
            last = t > counts.timesteps
            at_t = {n: float(of_T.sum() if last else of_T[t - 1]) for n, of_T in means.items()}
            energy = macs * profile.mac_pj
            quotients = {
                "firing_rate": _ratio(at_t["nonzero_in"], at_t["neurons_in"]) or 0.0,
                "ann_macs": float(macs),
                "ann_energy_pj": energy,
                "ratio_snn_ann": _ratio(at_t["energy_pj"], energy),
                "ann_frames_macs": float(macs * counts.timesteps) if counts.frames else None,
                "ann_frames_energy_pj": energy * counts.timesteps if counts.frames else None,
            }
            step = {"t": ALL if last else t}
            rows.append({**common, **description, **step, **at_t, **quotients})
    return rows


def step_means(layer: LayerCounts, profile: Profile) -> dict[str, FloatArray]:
    """Return the counts and energies of a layer at each step, [T], means per image."""
    # float64 from here on: sums over a test set are whole numbers below 2^53, which it holds.
    value_T = layer.value_TI.mean(axis=1)
    sop_formula_T = joules.formula_operations(layer)
    macs_formula = 0 if layer.layer.accumulates else layer.layer.macs_formula
    ac_pj = profile.accumulate_pj(layer.layer.narrow)
    return {
        "neurons_in": (layer.executed_T * layer.layer.neurons_in).astype(np.float64),
        "nonzero_in": layer.nonzero_TI.mean(axis=1),
        "sop_events": layer.events_TI.mean(axis=1),
        "sop_value": value_T,
        "macs": layer.step_macs.astype(np.float64),
        "sop_formula": sop_formula_T,
        "neuron_updates": np.full(len(value_T), float(layer.neuron_updates)),
        "energy_pj": layer.step_macs * profile.mac_pj + value_T * ac_pj,
        "energy_formula_pj": layer.executed_T * macs_formula * profile.mac_pj
        + sop_formula_T * ac_pj,
    }


def sidecar(
    counts: Counts,
    profile: Profile,
    labels: Labels,
    *,
    teacher: Counts | None = None,
    teacher_name: str = "",
    memory: bool = False,
    skipped: float | None = None,
    accuracy_T: Sequence[float] = (),
) -> dict[str, Any]:
    """Return what must be known to read the table, as JSON: constants, policies, totals, notes.

    Energies in pJ and counts are means per image. `teacher`: its counts add its total and the
    ratio to it. `memory`: add the traffic of weights and neuron state, never part of the totals.
    `skipped`: see `against_ann`. `accuracy_T`: of the steps up to each one, where it is known.
    """
    beside = traffic = None
    if teacher is not None:
        energy = joules.mean_energy(teacher, profile)
        beside = {
            "name": teacher_name,
            "macs": joules.ann_macs(teacher),
            "energy_pj": energy,
            "ratio_snn_teacher": _ratio(joules.mean_energy(counts, profile), energy),
        }
    # Never part of the totals: the headline is arithmetic alone, as papers have it.
    if memory:
        traffic = {
            "pj_per_byte": joules.MEMORY_PJ_PER_BYTE,
            "source": joules.MEMORY_SOURCE,
            "snn": joules.memory_traffic(counts),
            "teacher": joules.memory_traffic(teacher) if teacher else None,
        }
    return {
        "run": labels.run,
        "dataset": labels.dataset,
        "model_hash": labels.model_hash,
        "dtype": labels.dtype,
        "timesteps": counts.timesteps,
        "images": counts.images,
        "profile": profile.model_dump(mode="json", exclude=set() if profile.model else {"model"}),
        "stem": stem_policy(counts, profile),
        "totals": totals(counts, profile),
        "teacher": beside,
        "memory": traffic,
        "against_ann": {
            **joules.against_ann(counts, profile, skipped),
            "accuracy": list(accuracy_T),
        },
        "notes": [*NOTES, *(OF_FRAMES if counts.frames else (ONCE,))],
    }


def totals(counts: Counts, profile: Profile) -> dict[str, float | None]:
    """Return the totals over all steps: those of the row TOTAL, and the neurons' energy."""
    rows = [step_means(layer, profile) for layer in counts.layers]
    names = ("sop_events", "sop_value", "macs", "sop_formula", "neuron_updates")
    sums = {name: float(sum(row[name].sum() for row in rows)) for name in names}
    energy, ann = joules.mean_energy(counts, profile), joules.ann_macs(counts)
    updates = counts.timesteps * sum(layer.neuron_updates for layer in counts.layers)
    update_pj = profile.neuron_update_pj
    return {
        **sums,
        "energy_pj": energy,
        "energy_formula_pj": float(sum(row["energy_formula_pj"].sum() for row in rows)),
        "energy_fp32_pj": float_energy(sums),
        "neuron_update_energy_pj": None if update_pj is None else updates * update_pj,
        "ann_macs": float(ann),
        "ann_energy_pj": ann * profile.mac_pj,
        "ratio_snn_ann": _ratio(energy, ann * profile.mac_pj),
    }


def float_energy(totals: Mapping[str, float]) -> float:
    """Charge the totals of a sidecar as 32-bit floating point, in pJ an image."""
    energy: float = joules.priced(totals["macs"], totals["sop_value"], PROFILES[DEFAULT_PROFILE])
    return energy


def stem_policy(counts: Counts, profile: Profile) -> dict[str, Any]:
    """Return which layers direct encoding feeds with the image, and what they cost.

    `policy`: once (an image) or per_step, as the program computed them; `none` where no layer is
    fed with the image itself. Both energies, as papers differ in this and a reader may need either.
    """
    stem = joules.stem_energy(counts, profile)
    policy = "once" if counts.stem_once else "per_step"
    # What the program did is counted; the other policy differs in the stem alone.
    rest = joules.mean_energy(counts, profile) - stem[policy]
    return {
        "layers": [layer.layer.name for layer in counts.stem],
        "policy": policy if counts.stem else "none",
        "stem_energy_once_pj": stem["once"],
        "stem_energy_per_step_pj": stem["per_step"],
        "total_energy_once_pj": rest + stem["once"],
        "total_energy_per_step_pj": rest + stem["per_step"],
    }


def _ratio(snn: float, ann: float) -> float | None:
    return snn / ann if ann else None
