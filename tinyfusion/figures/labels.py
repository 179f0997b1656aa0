"""Places for the labels of points where they cover nothing and no leader line crosses one.

Coordinates are pixels, y upwards; a box is its left, lower, right and upper edge. Shape suffixes:
N labels, C candidate places of a label, K obstacles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

DISTANCES = (7.0, 11.0, 16.0, 23.0, 32.0, 44.0, 58.0, 75.0)
"""Distances of a label's edge from its point that are tried."""

TURNS = 16
"""Directions that are tried at each distance."""

LEADER = 13.0
"""Labels further away than this have a line to their point."""

BESIDE = 5.0
"""Pixels left free between labels in one row."""

COVERS, CROSSES, NEAR, FAR = 20.0, 4000.0, 60.0, 1.5
"""Costs of a pixel covered, of a crossing, of a pixel by which a label without a line is nearer to
another point than to its own, and of a pixel of distance."""

STARTS, SWEEPS = 12, 12
"""Orders that are tried, and how often each label may move in one."""


class Labels(NamedTuple):
    """Where labels go.

    Attributes:
        boxes_N4: their boxes.
        leaders_N4: lines from the nearest place of the box to the point: x and y of both ends.
        far_N: whether the line is drawn.
    """

    boxes_N4: Array
    leaders_N4: Array
    far_N: Flags


def place_labels(
    sizes_N2: Array, points_N2: Array, frame: Array, bars_K4: Array, radius: float
) -> Labels:
    """Choose a place for every label near its point.

    Labels choose in turn, each the cheapest of its candidates beside what the others chose, until
    none moves; of several orders the cheapest outcome is taken. Nothing is drawn at random.

    Args:
        sizes_N2: width and height of each label.
        points_N2: what they belong to.
        frame: box that labels must not leave.
        bars_K4: boxes that labels should not cover.
        radius: of the marks at the points, with some room around.
    """
    boxes_NC4, leaders_NC4, far_NC, distances_C = _candidates(sizes_N2, points_N2)
    marks_N4 = np.concatenate([points_N2 - radius, points_N2 + radius], axis=1)
    fixed_NC = np.stack(
        [
            FAR * distances_C
            + COVERS * _overlap(boxes_NC4[i], marks_N4).sum(1)
            + COVERS / 4 * _overlap(boxes_NC4[i], bars_K4).sum(1)
            + 4 * COVERS * (sizes_N2[i].prod() - _overlap(boxes_NC4[i], frame[None])[:, 0])
            + np.where(far_NC[i], NEAR / 4, NEAR)
            * _nearer_to_others(boxes_NC4[i], points_N2, i, radius)
            + CROSSES * far_NC[i] * np.delete(_cuts(leaders_NC4[i], marks_N4), i, 1).sum(1)
            for i in range(len(points_N2))
        ]
    )
    apart_NN = np.linalg.norm(points_N2[:, None] - points_N2[None], axis=-1)
    crowd = np.argsort(-(apart_NN < 80).sum(1), kind="stable")
    best: tuple[float, NDArray[np.int64]] | None = None
    for start in range(STARTS):
        order = np.roll(crowd if start % 2 == 0 else crowd[::-1], start // 2)
        chosen = np.full(len(points_N2), -1)
        for _ in range(SWEEPS):
            before = chosen.copy()
            for i in order:
                beside = [j for j in order if j != i and chosen[j] >= 0]
                cost_C = fixed_NC[i] + _between(
                    boxes_NC4[i], leaders_NC4[i], far_NC[i],
                    boxes_NC4[beside, chosen[beside]],
                    leaders_NC4[beside, chosen[beside]],
                    far_NC[beside, chosen[beside]],
                )  # fmt: skip
                chosen[i] = cost_C.argmin()
            if (chosen == before).all():
                break
        total = _total(chosen, fixed_NC, boxes_NC4, leaders_NC4, far_NC)
        if best is None or total < best[0]:
            best = total, chosen
    assert best is not None
    rows = np.arange(len(points_N2))
    at = rows, best[1]
    return Labels(boxes_NC4[at], leaders_NC4[at], far_NC[at])


def crossings(labels: Labels) -> int:
    """How many pairs there are of a drawn line and another label or another drawn line."""
    cut_NN = _cuts(labels.leaders_N4, labels.boxes_N4) | (
        _meet(labels.leaders_N4, labels.leaders_N4) & labels.far_N[None]
    )
    np.fill_diagonal(cut_NN, False)
    return int((cut_NN & labels.far_N[:, None]).sum())


def _candidates(sizes_N2: Array, points_N2: Array) -> tuple[Array, Array, Flags, Array]:
    """Boxes, lines and whether these are drawn, of every candidate, and its distance."""
    angles = 2 * np.pi * np.arange(TURNS) / TURNS
    turns_T2 = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    steps_C2 = (np.array(DISTANCES)[:, None, None] * turns_T2).reshape(-1, 2)
    sides_C2 = np.tile(np.clip(1.5 * turns_T2, -1, 1), (len(DISTANCES), 1))
    centres_NC2 = points_N2[:, None] + steps_C2 + sides_C2 * sizes_N2[:, None] / 2
    half_N12 = sizes_N2[:, None] / 2
    low_NC2, high_NC2 = centres_NC2 - half_N12, centres_NC2 + half_N12
    points_NC2 = np.broadcast_to(points_N2[:, None], centres_NC2.shape)
    ends_NC2 = np.clip(points_NC2, low_NC2, high_NC2)
    far_NC = np.linalg.norm(ends_NC2 - points_NC2, axis=-1) > LEADER
    return (
        np.concatenate([low_NC2, high_NC2], axis=-1),
        np.concatenate([ends_NC2, points_NC2], axis=-1),
        far_NC,
        np.repeat(DISTANCES, TURNS),
    )


def _between(
    boxes_C4: Array,
    leaders_C4: Array,
    far_C: Flags,
    others_K4: Array,
    lines_K4: Array,
    far_K: Flags,
) -> Array:
    """Cost of each candidate of a label beside the chosen places of others."""
    cuts_CK = (
        (_cuts(leaders_C4, others_K4) & far_C[:, None]).astype(float)
        + (_cuts(lines_K4, boxes_C4).T & far_K[None])
        + (_meet(leaders_C4, lines_K4) & far_C[:, None] & far_K[None])
    )
    return COVERS * _crowding(boxes_C4, others_K4).sum(1) + CROSSES * cuts_CK.sum(1)


def _total(
    chosen: NDArray[np.int64], fixed_NC: Array, boxes_NC4: Array, leaders_NC4: Array, far_NC: Flags
) -> float:
    at = np.arange(len(chosen)), chosen
    covered = np.triu(_crowding(boxes_NC4[at], boxes_NC4[at]), 1).sum()
    crossed = crossings(Labels(boxes_NC4[at], leaders_NC4[at], far_NC[at]))
    return float(fixed_NC[at].sum() + COVERS * covered + CROSSES * crossed)


def _overlap(boxes_A4: Array, boxes_B4: Array) -> Array:
    """Areas that boxes share, shape (A, B)."""
    low = np.maximum(boxes_A4[:, None, :2], boxes_B4[None, :, :2])
    high = np.minimum(boxes_A4[:, None, 2:], boxes_B4[None, :, 2:])
    return np.clip(high - low, 0, None).prod(-1)


def _crowding(boxes_A4: Array, boxes_B4: Array) -> Array:
    """Areas that labels share when one has room at its sides: words must not run together."""
    return _overlap(boxes_A4, boxes_B4 + np.array([-BESIDE, 0, BESIDE, 0]))


def _nearer_to_others(boxes_C4: Array, points_N2: Array, own: int, radius: float) -> Array:
    """By how much each box fails to be nearer to its own point than to any other, shape (C,)."""
    nearest = np.clip(points_N2[None], boxes_C4[:, None, :2], boxes_C4[:, None, 2:])
    distances_CN = np.linalg.norm(nearest - points_N2[None], axis=-1)
    others_C = np.delete(distances_CN, own, axis=1).min(1, initial=np.inf)
    return np.clip(distances_CN[:, own] + radius / 2 - others_C, 0, None)


def _cuts(lines_A4: Array, boxes_B4: Array) -> Flags:
    """Whether lines go through boxes, shape (A, B); by clipping (Liang and Barsky, 1984)."""
    start, step = lines_A4[:, None, :2], (lines_A4[:, 2:] - lines_A4[:, :2])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = (
            (boxes_B4[None, :, :2] - start) / step,
            (boxes_B4[None, :, 2:] - start) / step,
        )
    # A line along an axis is inside for all of its length or for none.
    inside = (start > boxes_B4[None, :, :2]) & (start < boxes_B4[None, :, 2:])
    still = np.broadcast_to(step == 0, inside.shape)
    enter = np.where(still, np.where(inside, -np.inf, np.inf), np.minimum(one, two)).max(-1)
    leave = np.where(still, np.where(inside, np.inf, -np.inf), np.maximum(one, two)).min(-1)
    return np.maximum(enter, 0) < np.minimum(leave, 1)


def _meet(lines_A4: Array, lines_B4: Array) -> Flags:
    """Whether lines cross each other, shape (A, B)."""
    a, b = lines_A4[:, None, :2], lines_A4[:, None, 2:]
    c, d = lines_B4[None, :, :2], lines_B4[None, :, 2:]
    return (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)


def _side(start: Array, end: Array, place: Array) -> Array:
    along, across = end - start, place - start
    return along[..., 0] * across[..., 1] - along[..., 1] * across[..., 0]
