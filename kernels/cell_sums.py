"""Weighted sums of map cells in plain torch, and their transpose; used by all bilinear pooling operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def sum_type(tensor: Tensor) -> torch.dtype:
    """Return the type of sums over a map (N, C, H, W): float64 for float64, otherwise float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def cell_table(maps: Sequence[Tensor]) -> Tensor:
    """Return all cells of maps (N, C, H_l, W_l) as rows (order: level, image, row, column), then one row of
    zeros for points outside the map.

    Returns (cells + 1, C) in the type of sums.
    """
    rows = [each.permute(0, 2, 3, 1).flatten(0, 2) for each in maps]
    return torch.cat([*rows, rows[0].new_zeros(1, rows[0].shape[1])]).to(sum_type(maps[0]))


def zero_table(maps: Sequence[Tensor]) -> Tensor:
    """Zeros (R, C) of the shape and type that `cell_table` gives for maps (N, C, H_l, W_l)."""
    cells = sum(each.shape[0] * each.shape[2] * each.shape[3] for each in maps)
    return torch.zeros(cells + 1, maps[0].shape[1], dtype=sum_type(maps[0]), device=maps[0].device)


def fill_maps(maps: Sequence[Tensor], table: Tensor) -> list[Tensor]:
    """Copy the rows of `cell_table` back into maps (N, C, H_l, W_l) and return them."""
    parts = table.split([*(each.shape[0] * each.shape[2] * each.shape[3] for each in maps), 1])
    for each, part in zip(maps, parts[:-1], strict=True):
        each.copy_(part.view(each.shape[0], each.shape[2], each.shape[3], each.shape[1]).permute(0, 3, 1, 2))
    return list(maps)


def sum_cells(table: Tensor, cells: Tensor, weights: Tensor) -> Tensor:
    """Return for each of n outputs the sum of k weighted rows of the table (cells + 1, C); cells (n, k)
    int64, weights (n, k) -> (n, C)."""
    if table.shape[1] == 0:  # not supported by embedding_bag
        return table.new_zeros(len(cells), 0)
    return embedding_bag(cells, table, per_sample_weights=weights, mode="sum")


def add_to_cells(table: Tensor, cells: Tensor, weights: Tensor, grads: Tensor) -> None:
    """Transpose of `sum_cells`: add n weighted gradients (n, C) to the rows of the table (cells + 1, C) that
    were summed."""
    outputs = torch.arange(len(cells), device=cells.device)[:, None].expand_as(cells)
    spread = torch.sparse_coo_tensor(
        torch.stack([cells.flatten(), outputs.flatten()]),
        weights.flatten(),
        (len(table), len(cells)),
        check_invariants=False,
    )
    table += torch.sparse.mm(spread, grads)
