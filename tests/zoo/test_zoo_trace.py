"""The optional trace of detectors: what it keeps, and that models without one are unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detection_zoo.zoo.parts.mask_head import MaskHead
from detection_zoo.zoo.parts.trace import record, trace


class Steps(nn.Module):
    """Records a list and a dict, and changes a layer's output in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        record("hidden", {"all": [hidden]})
        return self.second(hidden)


def test_a_trace_keeps_copies_by_path_and_name() -> None:
    model, x = Steps(), torch.randn(8, 2)
    with trace(model, "first", "second", "third") as seen:
        out = model(x)
    plain = nn.functional.linear(x, model.first.weight, model.first.bias)
    assert set(seen) == {"first", "second", "hidden"}
    assert torch.equal(seen["first"], plain) and torch.equal(seen["hidden"]["all"][0], plain)
    assert torch.equal(seen["second"], out) and not seen["first"].requires_grad
    assert (plain < 0).any()  # the ReLU did change the layer's output


def test_nothing_is_kept_after_the_block_even_where_it_fails() -> None:
    model = Steps()
    with trace(model) as outer:
        with pytest.raises(RuntimeError, match="shapes"), trace(model, "first") as inner:
            model(torch.zeros(1, 3))
        model(torch.zeros(1, 2))
    assert not inner and set(outer) == {"hidden"}
    model(torch.zeros(1, 2))
    assert torch.equal(outer["hidden"]["all"][0][0], model.first.bias)
    assert not model.first._forward_hooks


def test_exported_and_compiled_heads_do_not_contain_it() -> None:
    head, pooled = MaskHead(None, 4, 3, convs=1, width=4).eval(), torch.randn(2, 4, 7, 7)
    graph = torch.export.export(head, (pooled,)).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert not [name for name in called if "clone" in name or "detach" in name]
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    assert torch.equal(compiled(pooled), head(pooled))
    with trace(head) as seen:
        logits = compiled(pooled)
    assert torch.equal(logits, head.logits(seen["mask.hidden"]))
