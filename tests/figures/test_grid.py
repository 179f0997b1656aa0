from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures.grid import MARGIN, class_sheet, comparison_grid, image_grid, side_by_side


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)


def test_every_pixel_becomes_an_exact_square(images, tmp_path):
    page = pixels(image_grid(images, 3, tmp_path / "grid.png", scale=10))
    gap = 3  # 7 % of a tile of 40 pixels
    assert page.shape == (2 * 40 + gap + 2 * MARGIN, 3 * 40 + 2 * gap + 2 * MARGIN, 3)
    for index, image in enumerate(images):
        top, left = MARGIN + index // 3 * (40 + gap), MARGIN + index % 3 * (40 + gap)
        tile = page[top : top + 40, left : left + 40]
        expected = image.permute(1, 2, 0).numpy().repeat(10, 0).repeat(10, 1)
        np.testing.assert_array_equal(tile, expected)
    # Margins, gaps and the place of the missing sixth image are white.
    assert (page[:MARGIN] == 255).all() and (page[MARGIN + 40 : MARGIN + 43] == 255).all()
    assert (page[MARGIN + 43 :, MARGIN + 2 * 43 :] == 255).all()


def test_grey_images_and_labels_keep_the_colours(tmp_path):
    images = torch.tensor([10, 90, 170, 250], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    path = image_grid(
        images,
        2,
        tmp_path / "grid.png",
        row_labels=["first row", "second"],
        column_labels=["a", "b"],
        title="Four greys",
    )
    page = pixels(path)
    assert (page[..., 0] == page[..., 2]).sum() > 0.99 * page[..., 0].size
    # The grid sits in the bottom right corner; tiles are 72 pixels wide, 5 apart.
    right, bottom = page.shape[1] - MARGIN, page.shape[0] - MARGIN
    for row in range(2):
        for column in range(2):
            y, x = bottom - (1 - row) * 77, right - (1 - column) * 77
            tile = page[y - 72 : y, x - 72 : x]
            assert (tile == [10, 90, 170, 250][2 * row + column]).all()
    # Something is written left of and above the tiles.
    assert page[bottom - 149 :, : right - 149 - 5].min() < 100
    assert page[: bottom - 149 - 5, right - 149 :].min() < 100


def test_long_labels_and_titles_stay_on_the_page(images, tmp_path):
    path = image_grid(
        images, 5, tmp_path / "grid.png", row_labels=["a long label " * 4], title="long title " * 12
    )
    page = pixels(path)
    for border in (page[:5], page[-5:], page[:, :5], page[:, -5:]):
        assert (border == 255).all()


def test_comparison_has_one_row_per_model(tmp_path):
    rows = {
        name: np.full((10, 1, 8, 8), shade, np.uint8)
        for name, shade in (("teacher", 0), ("student", 128))
    }
    page = pixels(comparison_grid(rows, tmp_path / "rows.png", title="Same noise"))
    right, bottom = page.shape[1] - MARGIN, page.shape[0] - MARGIN
    assert (page[bottom - 72 : bottom, right - 72 : right] == 128).all()
    assert (page[bottom - 149 : bottom - 77, right - 72 : right] == 0).all()
    left = right - (10 * 77 - 5)
    assert (page[bottom - 72 : bottom, left : left + 72] == 128).all()


def test_figures_leave_matplotlib_as_it_was(images, tmp_path):
    before = dict(matplotlib.rcParams)
    image_grid(images, 2, tmp_path / "grid.png", title="a")
    assert dict(matplotlib.rcParams) == before
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_a_sheet_has_a_column_per_class(tmp_path):
    labels = [7, 2, 2, 7, 2, 9, 7, 9]
    shades = [10, 20, 30, 40, 50, 60, 70, 80]
    images = np.full((8, 1, 8, 8), 1, np.uint8) * np.array(shades, np.uint8)[:, None, None, None]
    page = pixels(class_sheet(images, labels, tmp_path / "sheet.png", {7: "seven"}, "Model"))
    right, bottom = page.shape[1] - MARGIN, page.shape[0] - MARGIN
    drawn = [
        [int(page[bottom - 36 - 77 * (1 - row), right - 36 - 77 * (2 - column), 0])
         for column in range(3)] for row in range(2)
    ]  # fmt: skip
    assert drawn == [[20, 10, 60], [30, 40, 80]], "classes 2, 7, 9; two of each, in order"
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".pdf", ".svg"}
    with pytest.raises(InputError, match="7 labels for 8 images"):
        class_sheet(images, labels[1:], tmp_path / "sheet.png")


def test_models_stand_side_by_side_with_equal_places(tmp_path):
    models = {
        "teacher, 28 blocks": np.full((4, 1, 8, 8), 0, np.uint8),
        "a student of quite a long name, 14 blocks": np.full((4, 1, 8, 8), 128, np.uint8),
    }
    page = pixels(side_by_side(models, 2, tmp_path / "sides.png", title="Same noise"))
    for shade in (0, 128):
        assert (page.max(axis=-1) == shade).sum() >= 4 * 72 * 72
    zero, grey = (np.nonzero((page[-MARGIN - 10] == shade).all(axis=-1))[0] for shade in (0, 128))
    assert zero.max() < grey.min()
    for border in (page[:5], page[-5:], page[:, :5], page[:, -5:]):
        assert (border == 255).all()
    with pytest.raises(InputError, match=r"one shape.*\(4, 1, 8, 8\).*\(3, 1, 8, 8\)"):
        side_by_side({"a": models["teacher, 28 blocks"], "b": np.zeros((3, 1, 8, 8), np.uint8)}, 2,
                     tmp_path / "x.png")  # fmt: skip
    with pytest.raises(InputError, match="no model"):
        side_by_side({}, 2, tmp_path / "x.png")


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 1, 4, 4),
        torch.zeros(1, 4, 4, dtype=torch.uint8),
        torch.zeros(2, 4, 4, 4, dtype=torch.uint8),
        torch.zeros(0, 1, 4, 4, dtype=torch.uint8),
    ],
)
def test_wrong_images_are_refused(wrong, tmp_path):
    with pytest.raises(InputError, match=r"must be uint8 of shape \(N, 1 or 3, H, W\)"):
        image_grid(wrong, 2, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


def test_wrong_layout_is_refused(images, tmp_path):
    path = tmp_path / "grid.png"
    with pytest.raises(InputError, match="columns=0"):
        image_grid(images, 0, path)
    with pytest.raises(InputError, match="1 row_labels for 2"):
        image_grid(images, 3, path, row_labels=["a"])
    with pytest.raises(InputError, match="2 column_labels for 3"):
        image_grid(images, 3, path, column_labels=["a", "b"])
    with pytest.raises(InputError, match=r"one shape.*\(5, 3, 4, 4\).*\(4, 3, 4, 4\)"):
        comparison_grid({"a": images, "b": images[:4]}, path)
    with pytest.raises(InputError, match="no rows"):
        comparison_grid({}, path)


@pytest.mark.parametrize("name", ["a$\\frac$b", "x$_{$", "^$a^$"])
def test_dollar_signs_of_names_are_no_formulas(images, tmp_path, name):
    image_grid(images, 3, tmp_path / "grid.png", row_labels=[name, name], title=name)
