"""The figure that a run returns to an optimiser: ``optimized_metric=recovered/fid``."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from tinyfusion.errors import InputError

SIZES = ("depth", "parameters")
HELD_OUT = ("held_out_loss", "held_out_loss_stderr")
DISTANCE = "teacher_distance"
FIDELITY = ("fid", "fid_std", "sfid", "inception_score", "precision", "recall")
SPEED = ("images_per_s", "images_per_s_min", "images_per_s_max")


def metrics_of(cfg: DictConfig) -> list[str]:
    """Keys of the figures that a run of a configuration can end with, as trackers have them.

    Which of a model's scores there are is the feature extractor's matter: those that it may lack
    are listed, too.

    Args:
        cfg: composed configuration of a command that has ``optimized_metric``.
    """
    evaluation = cfg.get("evaluation")
    if evaluation is not None and evaluation.get("_target_", "") is None:  # evaluation=none
        evaluation = None
    scored = [*FIDELITY, *SIZES, *HELD_OUT, "held_out_mse", "macs"]
    timed: list[str] = []
    if evaluation is not None and evaluation.get("speed_samples", 0):
        timed = [*SPEED, "speed_up"] if cfg.command == "run" else [*SPEED]
    distilled = [*SIZES, *HELD_OUT, DISTANCE]
    rows: dict[str, Sequence[str]]
    match cfg.command:
        case "prune":
            rows = {"source": [*SIZES, *HELD_OUT], "pruned": distilled}
        case "recover":
            rows = dict.fromkeys(("pruned", "recovered", "recovered_live"), distilled)
        case "run" if evaluation is None:
            rows = dict.fromkeys(("source", "recovered"), SIZES)
        case "run":
            full = [*scored, DISTANCE]
            rows = {"source": [*scored, *timed], "pruned": full, "recovered": [*full, *timed]}
            rows["recovered_live"] = full
            if (cfg.callbacks or {}).get("evaluate"):
                rows["recovered_best"] = full
            for number in range(1, len((cfg.iterative or {}).get("depths") or ())):
                rows[f"round_{number}"] = [*full, *timed]
        case "evaluate" if cfg.images is not None:
            rows = {"images": ["images", *FIDELITY]}
        case _:
            rows = {"model": [*scored, DISTANCE, *timed]}
    return [f"{name}/{key}" for name, keys in rows.items() for key in keys]


def check_metric(cfg: DictConfig) -> None:
    """Refuse a figure that no run of this configuration ends with.

    Args:
        cfg: composed configuration of any command.

    Raises:
        InputError: the name is not known.
    """
    name = cfg.get("optimized_metric")
    if name is not None and name not in (valid := metrics_of(cfg)):
        raise InputError(f"optimized_metric={name} is not known; valid: {', '.join(valid)}")


def check_search(config: DictConfig) -> None:
    """Refuse to search without a figure to search by.

    Args:
        config: what the runs of a sweep share, with Hydra's own part.

    Raises:
        InputError: Hydra's sweeper is an optimiser, and ``optimized_metric`` is not given, or is
            the name of no figure.
    """
    if str(config.hydra.sweeper.get("_target_")).endswith("BasicSweeper"):
        return
    if config.get("optimized_metric") is None:
        name = config.hydra.runtime.choices.get("hydra/sweeper")
        raise InputError(
            f"hydra/sweeper={name} searches by a figure: give optimized_metric=; "
            f"valid: {', '.join(metrics_of(config))}"
        )
    check_metric(config)
