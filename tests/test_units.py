"""Units say where they are by names that can be read back."""

from __future__ import annotations

import pytest

from tinyfusion.errors import InputError
from tinyfusion.units import BLOCKS, INTERVALS, Place, Unit, intervals_of


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.3", Place("blocks", 3, 4)),
        ("blocks.3.attn", Place("blocks", 3, 4, "attn")),
        ("blocks.4:9", Place("blocks", 4, 9)),
        ("blocks.0.neurons", Place("blocks", 0, 1, "neurons")),
        ("decoder_blocks.12.mlp", Place("decoder_blocks", 12, 13, "mlp")),
        ("net.0.layers.2.attn.heads", Place("net.0.layers", 2, 3, "attn.heads")),
        ("residual", Place(part="residual")),
        ("x_embedder.proj", Place(part="x_embedder.proj")),
    ],
)
def test_names_are_read_back(name: str, place: Place) -> None:
    assert Place.parse(name) == place
    assert str(place) == name


@pytest.mark.parametrize("name", ["", "blocks.9:4", "blocks.4:4", 3])
def test_what_names_no_unit_is_refused(name: object) -> None:
    with pytest.raises(InputError, match="valid: "):
        Place.parse(name)


def blocks(*stacks: int) -> list[Unit]:
    places = [Place(f"s{s}", i, i + 1) for s, depth in enumerate(stacks) for i in range(depth)]
    return [Unit(BLOCKS, p, i, 10 + i, macs=100 * i) for i, p in enumerate(places)]


def test_intervals_are_all_runs_of_blocks_within_a_stack() -> None:
    found = intervals_of(blocks(3, 2), (3,))
    assert [unit.name for unit in found] == ["s0.0:2", "s0.0:3", "s0.1:3", "s1.0:2"]
    last = found[-1]
    assert (last.kind, last.index, last.blocks) == (INTERVALS, 3, range(3, 5))
    assert (last.parameters, last.macs) == (13 + 14, 300 + 400)
    # An empty stack has none.
    assert len(intervals_of(blocks(2), (0,))) == 1


def test_costs_that_are_not_known_are_not_made_up() -> None:
    pair = [Unit(BLOCKS, Place("b", i, i + 1), i, 1) for i in range(2)]
    assert intervals_of(pair)[0].macs is None
    assert Unit("channels", Place(part="residual"), None, None, size=4).blocks == range(0)
