"""Tune a method's parameters on a few labeled images, with the same budget for every method.

    python -m wsss_lib.tune rib --preset voc12-animals --trials 12
    python -m wsss_lib.tune rib --preset voc12-animals --measure --seeds 0 1 2

The score is the mIoU of the maps at their best single threshold on the tuning images. `--measure` then makes the maps of
all other training images with the best parameters and scores them at the same threshold. docs/protocol.md has the rules. A
killed study can be resumed: with the same seed it tries the same values, whether or not it was stopped.
"""

import argparse
import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from wsss_lib.comparison import curve_with_crf
from wsss_lib.config import Config
from wsss_lib.core.files import read_json, write_json
from wsss_lib.core.parallel import ShardDone
from wsss_lib.core.scoring import sweep_maps
from wsss_lib.core.stage import Job, open_stage, run, run_folder_of
from wsss_lib.data.dataset import SegmentationDataset, open_data
from wsss_lib.errors import DataError, Diverged
from wsss_lib.methods import METHODS
from wsss_lib.ops.metrics import scores
from wsss_lib.ops.thresholds import ThresholdSweep
from wsss_lib.parameters import Range
from wsss_lib.presets import preset_config
from wsss_lib.results import markdown_table

TUNING_IMAGES = 100
PARTS = 4  # of the tuning images; after each, the study may stop a trial early
THRESHOLDS = np.linspace(0.01, 0.9, 90)
CRF_SHIFTS = (-0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2)  # tried around the best threshold without a CRF


def split_of_tuning(
    data: SegmentationDataset, count: int = TUNING_IMAGES, measured: int = 0
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Return the images that tune and those that measure; an image's side depends only on its name.

    Args:
        data: a split; images without masks are left out.
        count: images that tune, those whose names have the smallest CRC-32.
        measured: images that measure, the next in this order; 0: all others.

    Raises:
        DataError: there are too few images with masks.
    """
    data = data.scored()
    ranked = sorted(range(len(data)), key=lambda row: zlib.crc32(data.ids[row].encode()))
    if len(ranked) < 2 * count:
        raise DataError(f"{data.root}: {len(ranked)} images have masks, and tuning on {count} needs at least {2 * count}")
    return data.part(sorted(ranked[:count])), data.part(sorted(ranked[count : count + measured if measured else None]))


def make_some_maps(config: Config, data: SegmentationDataset, folder: Path, part: int = 1, parts: int = 1) -> None:
    """Train what a method trains, or find it, and write the maps of one part of some images to a folder of the study."""
    maps = METHODS[config.method].MAPS
    for stage in maps.inputs(config).values():
        run_with_inputs(stage, config)
    job = Job(maps, config.model_copy(update={"shards": parts, "shard": part if parts > 1 else 1}))
    job.inputs = {name: open_stage(stage, config) for name, stage in maps.inputs(config).items()}
    job.folder, job.data = folder, data
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(ShardDone):
        maps.make(job)


def run_with_inputs(stage: Any, config: Config) -> None:
    """Run a stage after those that it needs."""
    for other in stage.inputs(config).values():
        run_with_inputs(other, config)
    run(stage, config)


def pixel_precision_recall(sweep: ThresholdSweep) -> float:
    """Return the area under the precision-recall curve of object pixels, over all thresholds: in [0, 1].

    A pixel counts as found if its class is correct. No threshold is chosen.
    """
    confusions = sweep.confusions()[::-1].astype(float)  # from the highest threshold on, recall grows
    right = np.trace(confusions[:, 1:, 1:], axis1=1, axis2=2)
    recall = right / max(confusions[0, 1:].sum(), 1)
    precision = right / np.maximum(confusions[:, :, 1:].sum((1, 2)), 1)
    return float(np.trapezoid(precision, recall) + precision[0] * recall[0])


def suggested(trial: Any, ranges: dict[str, Range]) -> dict[str, Any]:
    """Ask a trial for a value of each parameter."""
    return {
        name: trial.suggest_int(name, int(low), int(high), log=log)
        if isinstance(low, int)
        else trial.suggest_float(name, low, high, log=log)
        for name, (low, high, log) in ranges.items()
    }


class Study:
    """A method's study: its trials lie in a SQLite file, its maps next to it."""

    def __init__(self, method: str, preset: str, seed: int = 0, measured: int = 0, **values: Any):
        try:
            import optuna
        except ImportError:
            raise ImportError("tuning needs the package optuna: pip install -e '.[tune]'") from None
        self.optuna, self.method, self.preset, self.values = optuna, method, preset, values
        if not (ranges := getattr(METHODS[method], "TUNED", {})):
            raise ValueError(f"method {method!r} names no parameters to tune; give its file a table TUNED")
        self.ranges, self.seed = ranges, seed
        self.config = preset_config(preset, method, seed=seed, **values)
        self.folder = run_folder_of(self.config) / method / f"seed{seed}" / "tuning"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tuning, self.measuring = split_of_tuning(open_data(self.config, self.config.train_split), measured=measured)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            storage=f"sqlite:///{self.folder / 'study.db'}",
            study_name=method,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        )

    def finished(self) -> list[Any]:
        """Return the trials that count: completed, or stopped early."""
        states = self.optuna.trial.TrialState
        return self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))

    def tune(self, trials: int, seconds: float = float("inf")) -> None:
        """Try values until so many trials are finished, or so many seconds have been spent on all of them.

        The first trial takes the preset's values. The values of each follow from the seed and the trials before it, so
        a trial interrupted by a kill is tried again.
        """
        states = self.optuna.trial.TrialState
        for killed in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            self.study.tell(killed.number, state=states.FAIL)
        while len(done := self.finished()) < trials and sum(made.user_attrs["seconds"] for made in done) < seconds:
            self.study.sampler = self.optuna.samplers.TPESampler(seed=1000 * self.seed + len(done), n_startup_trials=4)
            if not done:
                given = {name: getattr(self.config, name) for name in self.ranges}
                self.study.enqueue_trial(
                    {name: min(max(given[name], low), high) for name, (low, high, _) in self.ranges.items()}
                )
            trial, started = self.study.ask(), time.monotonic()
            score, state = self._score(trial, len(done))
            trial.set_user_attr("seconds", time.monotonic() - started)
            self.study.tell(trial, score if state == states.COMPLETE else None, state=state)
            print(f"{self.method} trial {len(done) + 1} of {trials}: mIoU {100 * score:.2f} % {trial.params}", flush=True)

    def _score(self, trial: Any, number: int) -> tuple[float, Any]:
        states = self.optuna.trial.TrialState
        config, folder = self.with_values(suggested(trial, self.ranges)), self.folder / f"trial{number}"
        for part in range(1, PARTS + 1):
            try:
                make_some_maps(config, self.tuning, folder, part, PARTS)
            except Diverged:  # a result, too
                return 0.0, states.COMPLETE
            made = [row for row, image_id in enumerate(self.tuning.ids) if (folder / f"{image_id}.npz").is_file()]
            sweep: ThresholdSweep = sweep_maps(self.tuning.part(made), folder, THRESHOLDS)
            threshold, score = sweep.best()
            trial.report(score, part)
            if part < PARTS and trial.should_prune():
                return score, states.PRUNED
        trial.set_user_attr("threshold", threshold)
        trial.set_user_attr("area", pixel_precision_recall(sweep))
        return score, states.COMPLETE

    def with_values(self, values: dict[str, Any], seed: int | None = None) -> Config:
        """Return the configuration of a trial."""
        return preset_config(self.preset, self.method, **self.values | values | {"seed": self.seed if seed is None else seed})

    def measure(self, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Score the best trial's values and threshold on the images not used for tuning; one row per seed.

        Raises:
            DataError: no trial has been completed.
        """
        best, record = self.best, self.folder / "measured.json"
        rows = read_json(record) if record.is_file() else []
        known = {row["seed"] for row in rows if row["values"] == best.params}
        for seed in (seed for seed in seeds if seed not in known):
            config = self.with_values(best.params, seed)
            folder = self.folder / f"measured{best.number}.seed{seed}"
            make_some_maps(config, self.measuring, folder)
            rows.append({"method": self.method, "seed": seed, "values": best.params} | self._measured(folder))
            write_json(record, rows)
        return [row for row in rows if row["values"] == best.params]

    def _measured(self, folder: Path) -> dict[str, Any]:
        """Score some maps at the threshold of the best trial, and at all others."""
        threshold = self.best.user_attrs["threshold"]
        at = int(np.abs(THRESHOLDS - threshold).argmin())
        sweep: ThresholdSweep = sweep_maps(self.measuring, folder, THRESHOLDS)
        curve, result = sweep.curve(), scores(sweep.confusions()[at])
        several = self.measuring.labels.sum(1) > 1
        one_class, several_classes = (
            100 * float(sweep_maps(self.measuring.part(np.flatnonzero(rows)), folder, THRESHOLDS).curve()[at])
            if rows.any()
            else None
            for rows in (~several, several)
        )
        return {
            "threshold": threshold,
            "miou": 100 * result.miou,
            "best_miou": 100 * float(np.nanmax(curve)),
            "area": 100 * pixel_precision_recall(sweep),
            "one_class": one_class,  # mIoU of the images with one class, and of the others
            "several_classes": several_classes,
            "iou": {
                name: round(100 * float(value), 2)
                for name, value in zip(("background", *self.measuring.classes), result.iou, strict=True)
                if not np.isnan(value)
            },
            "images": len(self.measuring),
            "curve": np.round(100 * curve, 3).tolist(),
        }

    def refine(self) -> list[dict[str, Any]]:
        """Score what was measured after a dense CRF, too, at the threshold that is then best on the tuning images.

        Raises:
            DataError: no trial has been completed.
        """
        best, record = self.best, self.folder / "measured.json"
        rows = read_json(record) if record.is_file() else []
        todo = [row for row in rows if row["values"] == best.params and "crf_miou" not in row]
        if todo:
            near = [round(float(best.user_attrs["threshold"]) + shift, 2) for shift in CRF_SHIFTS]
            near = [threshold for threshold in near if 0 < threshold < 1]
            maps = self.folder / f"trial{self.finished().index(best)}"
            threshold = near[int(np.argmax(curve_with_crf(self.tuning, maps, near)))]
        for row in todo:
            maps = self.folder / f"measured{best.number}.seed{row['seed']}"
            row |= {"crf_threshold": threshold, "crf_miou": curve_with_crf(self.measuring, maps, [threshold])[0]}
            write_json(record, rows)
        return [row for row in rows if row["values"] == best.params]

    @property
    def best(self) -> Any:
        """Return the best trial, the first of equals.

        Raises:
            DataError: no trial has been completed.
        """
        done = [trial for trial in self.finished() if trial.state.name == "COMPLETE" and trial.value]
        if not done:
            raise DataError(f"{self.folder}: no trial is finished; run the study first, with --trials")
        return max(done, key=lambda trial: trial.value)

    def summary(self) -> dict[str, Any]:
        """Return all that the study has found, as plain values: its trials in their order, and what was measured."""
        record = self.folder / "measured.json"
        trials = [
            {"score": 100 * trial.value if trial.state.name == "COMPLETE" else None, "values": trial.params} | trial.user_attrs
            for trial in self.finished()
        ]
        return {
            "preset": self.preset,
            "images": len(open_data(self.config, self.config.train_split)),
            "tuning": len(self.tuning),
            "trials": trials,
            "measured": read_json(record) if record.is_file() else [],
        }

    def table(self) -> str:
        """Return the trials in the order in which they were made."""
        head = ["trial", "mIoU %", "threshold", "area %", "seconds", *self.ranges]
        rows = [
            [
                str(number),
                f"{100 * trial.value:.2f}" if trial.state.name == "COMPLETE" else "given up",
                f"{trial.user_attrs.get('threshold', float('nan')):.2f}",
                f"{100 * trial.user_attrs.get('area', float('nan')):.1f}",
                f"{trial.user_attrs['seconds']:.0f}",
                *(f"{trial.params[name]:.4g}" for name in self.ranges),
            ]
            for number, trial in enumerate(self.finished(), start=1)
        ]
        return markdown_table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the program with a sentence when it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m wsss_lib.tune", description=__doc__.split("\n")[0])
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("--preset", default="voc12-animals")
    parser.add_argument("--trials", type=int, default=12, help="trials in all, those of earlier calls included")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after so many seconds of trials")
    parser.add_argument("--seed", type=int, default=0, help="of the study and of its trainings")
    parser.add_argument("--limit", type=int, default=0, help="train on the first images only, and tune and measure on these")
    parser.add_argument("--measured", type=int, default=0, help="images that measure; 0: all that do not tune")
    parser.add_argument("--measure", action="store_true", help="score the best values on the images that did not tune")
    parser.add_argument("--crf", action="store_true", help="score what was measured after a dense CRF, too")
    parser.add_argument("--save", type=Path, help="write trials and measured rows into this JSON file, beside other methods'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings that are measured")
    options = parser.parse_args(arguments)
    try:
        study = Study(options.method, options.preset, options.seed, options.measured, limit=options.limit)
        if options.save:
            known = read_json(options.save) if options.save.is_file() else {}
            write_json(options.save, known | {options.method: study.summary()})
            return
        if options.crf:
            for row in study.refine():
                print(
                    f"{row['method']} seed {row['seed']}: mIoU {row['crf_miou']:.2f} % after a CRF, "
                    f"at the tuned threshold {row['crf_threshold']:.2f}"
                )
            return
        if options.measure:
            for row in study.measure(options.seeds):
                print(
                    f"{row['method']} seed {row['seed']}: mIoU {row['miou']:.2f} % at the tuned threshold "
                    f"{row['threshold']:.2f}, {row['best_miou']:.2f} % at the best, area {row['area']:.1f} %, "
                    f"on {row['images']} images"
                )
            return
        study.tune(options.trials, options.seconds)
        print(study.table())
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
