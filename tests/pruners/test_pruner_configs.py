"""Every pruner that scores with every selector, built as the commands build them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import Parameter, signature

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import DictConfig

from tinyfusion.errors import InputError
from tinyfusion.pipeline.pruning import method_of
from tinyfusion.pruners.scored import Scored
from tinyfusion.pruners.selectors import TopK
from tinyfusion.scheme import parse_scheme
from tinyfusion.settings.check import check
from tinyfusion.settings.compose import build
from tinyfusion.settings.overview import choices, conf_folder

SCORED = ("shortgpt", "flux_lite", "sensitivity", "laptop_diff", "lim", "ecoflap")
WITHOUT_DATA = ("zd", "farms")
PATTERNS = ("oracle", "uniform", "first", "last")


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return check(compose("prune", [*overrides]))


@pytest.mark.parametrize("selector", choices("selector"))
@pytest.mark.parametrize("name", (*SCORED, *WITHOUT_DATA))
def test_criterion_with_selector(context, name: str, selector: str) -> None:
    few = [] if name in WITHOUT_DATA else ["pruner.num_samples=8"]
    cfg = composed(f"pruner={name}", f"selector={selector}", *few)
    pruner = build(cfg.pruner)
    assert isinstance(pruner, Scored) and method_of(pruner) == name
    assert pruner.uses_scheme == (selector == "grouped")
    scheme = parse_scheme("1:2", 4)
    choice = pruner.choose(context(2, scheme=scheme))
    assert len(choice.kept) == 2 and choice.scores["selector"] == selector
    assert len(choice.scores[pruner.criterion]) == 4
    assert (choice.scheme is None) == (selector not in ("grouped", "group_budgets"))
    assert choice.scheme == scheme or selector != "grouped"
    assert choice == build(cfg.pruner).choose(context(2, scheme=scheme))
    json.dumps(choice.scores)


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern(context, name: str) -> None:
    cfg = composed(f"pruner={name}")
    pruner = build(cfg.pruner)
    assert method_of(pruner) == name and len(pruner.choose(context(3)).kept) == 3


def test_selectors_that_pruners_choose_and_defaults() -> None:
    assert build(composed("pruner=laptop_diff").pruner).selector.name == "knapsack"
    given = composed("pruner=laptop_diff", "selector=greedy")
    assert build(given.pruner).selector.name == "greedy"
    found = {name: build(composed(f"pruner={name}").pruner) for name in SCORED[:3]}
    assert {pruner.selector.name for pruner in found.values()} == {"top_k"}
    assert {name: pruner.protect_last for name, pruner in found.items()} == {
        "shortgpt": True,
        "flux_lite": False,
        "sensitivity": False,
    }
    assert {pruner.num_samples for pruner in found.values()} == {1024}


@pytest.mark.parametrize("name", choices("pruner"))
def test_files_and_classes_have_the_same_defaults(name: str) -> None:
    cfg = compose("prune", [f"pruner={name}"]).pruner
    for key, parameter in signature(get_class(cfg["_target_"])).parameters.items():
        if key in cfg and parameter.default is not Parameter.empty:
            value = cfg[key]
            if isinstance(value, DictConfig):
                assert type(build(value)) is type(parameter.default), key
            else:
                assert value == parameter.default, key


def test_a_scheme_that_no_selector_needs_is_not_recorded(context) -> None:
    torch.manual_seed(0)
    pruner = build(composed("pruner=flux_lite", "pruner.num_samples=8").pruner)
    assert pruner.choose(context(1, scheme=parse_scheme("1:2", 4))).scheme is None


class Miscounting(Scored):
    def scores(self, net, calibration, kept):
        return torch.zeros(len(kept) + 1)


def test_own_criterion_that_gives_too_many_scores_is_refused(context) -> None:
    with pytest.raises(InputError, match=r"Miscounting\.scores gave shape \(5,\) for 4 units"):
        Miscounting(TopK(), 8).choose(context(2))
