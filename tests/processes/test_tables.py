"""Values per time, read at times."""

import pytest
import torch

from tinyfusion.processes.tables import Tables

VALUES_S = torch.tensor([0.1, 0.2, 1 / 3], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_are_rounded_once_and_take_the_shape_of_the_data(dtype: torch.dtype) -> None:
    t = torch.tensor([2, 0])
    found = Tables(name=VALUES_S).at("name", t, torch.zeros(2, 3, 4, 4, dtype=dtype))
    assert found.shape == (2, 1, 1, 1) and found.dtype == dtype
    assert torch.equal(found.flatten(), VALUES_S[t].to(dtype))


def test_a_table_is_copied_once_per_type(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, copies = Tables(name=VALUES_S), []
    copy = torch.Tensor.to

    def counted(tensor: torch.Tensor, *args: object) -> torch.Tensor:
        copies.append(args)
        return copy(tensor, *args)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    for _ in range(3):
        tables.at("name", torch.tensor([1]), torch.zeros(1))
    assert len(copies) == 2, "the type, then the device"


def test_tables_first_read_while_sampling_serve_in_training() -> None:
    tables, t = Tables(name=VALUES_S), torch.tensor([1])
    with torch.inference_mode():
        tables.at("name", t, torch.zeros(1))
    weight = torch.ones(1, requires_grad=True)
    (tables.at("name", t, weight) * weight).sum().backward()
    assert weight.grad.item() == pytest.approx(0.2)
