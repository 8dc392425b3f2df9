"""The streamed weights file: any safetensors reader reads it, and every tensor lies where its placement says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hart_edge.export.weights import Placement, TensorFact, WeightsWriter

TENSORS = {
    "constants.codebook": torch.arange(19 * 7, dtype=torch.float32).reshape(19, 7),
    "head.weight": torch.linspace(-3, 3, 111).half(),
    "ids": torch.tensor([-1, 989], dtype=torch.int64),
    "scalar": torch.tensor(2.5),
    "nothing": torch.zeros(0, 3),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "größe": torch.ones(1, 1, 1, 1, 5),
}


def facts() -> dict[str, TensorFact]:
    return {name: TensorFact.of(tensor) for name, tensor in TENSORS.items()}


def written(path: Path) -> WeightsWriter:
    with WeightsWriter(path, facts()) as writer:
        items = list(TENSORS.items())
        writer.write(items[:2])
        writer.write(items[2:])
    return writer


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    written(tmp_path / "weights.safetensors")
    read = load_file(tmp_path / "weights.safetensors")
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_placements_are_the_bytes_in_the_file(tmp_path: Path) -> None:
    placements = written(tmp_path / "weights.safetensors").placements
    data = (tmp_path / "weights.safetensors").read_bytes()
    for name, tensor in TENSORS.items():
        place = placements[name]
        assert place.shape == tuple(tensor.shape)
        stored = np.frombuffer(data[place.offset : place.offset + place.nbytes], tensor.numpy().dtype)
        np.testing.assert_array_equal(stored.reshape(place.shape), tensor.numpy())


def test_size_is_known_in_advance(tmp_path: Path) -> None:
    writer = written(tmp_path / "weights.safetensors")
    assert writer.bytes == (tmp_path / "weights.safetensors").stat().st_size
    last = list(writer.placements.values())[-1]
    assert writer.bytes == last.offset + last.nbytes


def test_data_starts_aligned(tmp_path: Path) -> None:
    first = written(tmp_path / "weights.safetensors").placements["constants.codebook"]
    assert first == Placement(first.offset, 19 * 7 * 4, (19, 7))
    assert first.offset % 64 == 0


def test_wrong_order_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ids.*does not come next"), WeightsWriter(tmp_path / "w", facts()) as writer:
        writer.write([("ids", TENSORS["ids"])])


@pytest.mark.parametrize("tensor", [torch.zeros(19, 7).half(), torch.zeros(7, 19), torch.zeros(19 * 7)])
def test_other_dtype_or_shape_than_announced_is_an_error(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"constants\.codebook.*does not come next"), WeightsWriter(tmp_path / "w", facts()) as writer:
        writer.write([("constants.codebook", tensor)])


def test_unannounced_tensor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="colour"), WeightsWriter(tmp_path / "w", facts()) as writer:
        writer.write(TENSORS.items())
        writer.write([("colour", torch.zeros(1))])


def test_missing_tensor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"6 announced tensors were not written, first head\.weight"):  # noqa: SIM117
        with WeightsWriter(tmp_path / "w", facts()) as writer:
            writer.write(list(TENSORS.items())[:1])


def test_error_inside_the_block_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), WeightsWriter(tmp_path / "w", facts()):
        raise KeyError("mine")
