"""RoIAlign on every backend: a ramp by hand, torchvision and the recorded originals as judges, gradients, and
rows that cannot be pooled."""

from __future__ import annotations

import pytest
import torch
import torchvision
from cuda_on_cpu import SHUFFLED, CudaOnCpu
from kernel_backends import ROIS, Backend, every_backend, matches, normal_input, recorded  # noqa: F401

from detection_zoo.kernels.launch import SHARED_BYTES
from detection_zoo.kernels.roi_align import (
    multilevel_roi_align,
    multilevel_roi_align_averaged,
    roi_align,
    roi_align_averaged,
    roi_align_points,
)
from detection_zoo.kernels.roi_align_cuda import _pack
from detection_zoo.kernels.roi_levels import LevelRule, assign_levels

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(autouse=True)
def nondeterministic_again():
    yield
    torch.use_deterministic_algorithms(False)


def pyramid(
    dtype: torch.dtype = torch.float32, layout: str = "nchw", channels: int = 8
) -> list[torch.Tensor]:
    return [
        normal_input(70 + level, (2, channels, 40 >> level, 60 >> level))
        .to(dtype)
        .contiguous(memory_format=LAYOUTS[layout])
        for level in range(3)
    ]


def gradients(
    maps: list[torch.Tensor], pool, upstream: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    maps = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in maps]
    pooled = pool(maps)
    pooled.backward(upstream.to(pooled))
    return pooled.detach().cpu(), [each.grad.cpu() for each in maps]


def ramp(height: int, width: int) -> torch.Tensor:
    return (10.0 * torch.arange(height)[:, None] + torch.arange(width)[None])[None, None]


@pytest.mark.parametrize("ratio", [0, 1, 2, 5, 11])  # 11 is more than the kernels' table holds
@pytest.mark.parametrize("aligned", [False, True])
def test_ramp_by_hand(backend: Backend, ratio: int, aligned: bool) -> None:
    """Bilinear samples of a linear map are exact, so a bin's mean is the map at the bin's centre."""
    rois = torch.tensor([[0.0, 16, 24, 80, 120]])
    pooled = roi_align(
        ramp(30, 30).to(backend.device),
        rois.to(backend.device),
        (4, 2),
        0.125,
        ratio,
        aligned,
        backend=backend.name,
    )
    shift = 0.5 if aligned else 0.0
    y, x = 3 - shift + (torch.arange(4) + 0.5) * 3, 2 - shift + (torch.arange(2) + 0.5) * 4
    torch.testing.assert_close(pooled.cpu(), (10 * y[:, None] + x[None])[None, None], rtol=1e-6, atol=1e-5)


def test_points_by_hand(backend: Backend) -> None:
    """Points from the box's start to its end + 1 cell; beyond the last cell the ramp goes on, from the size
    on it is 0."""
    rois = torch.tensor([[0.0, 1, 2, 5, 4], [0, 6, 0, 8, 1]], device=backend.device)
    pooled = roi_align_points(ramp(9, 9).to(backend.device), rois, (2, 3), 1.0, backend=backend.name).cpu()
    assert pooled[0, 0].tolist() == [[21.0, 23.5, 26.0], [51.0, 53.5, 56.0]]
    assert pooled[1, 0].tolist() == [[6.0, 7.5, 0.0], [26.0, 27.5, 0.0]]
    last = roi_align_points(
        ramp(9, 9).to(backend.device),
        torch.tensor([[0.0, 8, 8, 8, 8]], device=backend.device),
        (3, 3),
        1.0,
        backend=backend.name,
    )
    assert last[0, 0].tolist() == [[88.0, 88.5, 0.0], [93.0, 93.5, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0, 2, 9])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_map_against_torchvision(
    backend: Backend, dtype: torch.dtype, ratio: int, aligned: bool, layout: str
) -> None:
    maps, rois = [pyramid(dtype, layout)[1].to(backend.device)], ROIS.to(dtype).to(backend.device)
    upstream = normal_input(80, (len(ROIS), 8, 7, 7))
    pooled, grads = gradients(
        maps,
        lambda given: roi_align(given[0], rois, 7, 1 / 8, ratio, aligned, backend=backend.name),
        upstream,
    )
    expected, expected_grads = gradients(
        maps, lambda given: torchvision.ops.roi_align(given[0], rois, 7, 1 / 8, ratio, aligned), upstream
    )
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(pooled, expected, rtol=tolerance, atol=tolerance)
    assert (grads[0] - expected_grads[0]).norm() <= tolerance * expected_grads[
        0
    ].norm()  # 16,000 numbers of the point's RoI meet in one cell


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.float32, "nchw"),
        (torch.float32, "channels_last"),
        (torch.float16, "channels_last"),
        (torch.float16, "nchw"),
        (torch.bfloat16, "channels_last"),
    ],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_pyramid_against_torchvision(
    backend: Backend, dtype: torch.dtype, layout: str, deterministic: bool
) -> None:
    """MultiScaleRoIAlign puts the 1e-6 outside the logarithm; no box here lies that close to a level's
    edge."""
    maps, rois = [each.to(backend.device) for each in pyramid(dtype, layout)], ROIS.to(backend.device)
    peer = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=60, canonical_level=4)
    boxes = [rois[rois[:, 0] == image, 1:] for image in (0, 1)]
    order = torch.cat([(rois[:, 0] == image).nonzero().squeeze(1) for image in (0, 1)])
    upstream = normal_input(81, (len(ROIS), 8, 7, 7))
    expected, expected_grads = gradients(
        [each.float() for each in maps],
        lambda given: peer({str(level): each for level, each in enumerate(given)}, boxes, [(160, 240)] * 2)[
            torch.argsort(order)
        ],
        upstream,
    )
    torch.use_deterministic_algorithms(deterministic)
    pooled, grads = gradients(
        maps,
        lambda given: multilevel_roi_align(
            given, rois, 7, [1 / 4, 1 / 8, 1 / 16], 2, canonical_scale=60, backend=backend.name
        ),
        upstream,
    )
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(pooled.float(), expected, rtol=tolerance, atol=tolerance)
    for grad, wanted, each in zip(grads, expected_grads, maps, strict=True):
        torch.testing.assert_close(grad.float(), wanted, rtol=2 * tolerance, atol=10 * tolerance)
        assert grad.dtype == dtype and grad.stride() == each.stride()


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("channels", "size"), [(3, 7), (8, (2, 5)), (40, (2, 5)), (4, 28)]
)  # 28 x 28 bins: no tile holds them
def test_memory_formats_agree(
    backend: Backend, wanted: bool, layout: str, channels: int, size: int | tuple[int, int]
) -> None:
    maps, rois = (
        [each.to(backend.device) for each in pyramid(layout=layout, channels=channels)],
        ROIS.to(backend.device),
    )
    rest = (rois, size, [1 / 4, 1 / 8, 1 / 16], 2, True)
    pooled = multilevel_roi_align(maps, *rest, canonical_scale=60, channels_last=wanted, backend=backend.name)
    expected = multilevel_roi_align(maps, *rest, canonical_scale=60, backend="torchvision")
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
    assert pooled.is_contiguous(memory_format=torch.channels_last if wanted else torch.contiguous_format)


def test_any_strides(backend: Backend) -> None:
    whole = normal_input(90, (4, 10, 20, 60))
    part = whole[1::2, 2:9:2, :, 5:35]  # neither layout, and not at the start of its storage
    pool = {"output_size": 3, "spatial_scale": 1 / 8, "sampling_ratio": 2, "backend": backend.name}
    pooled = roi_align(
        (
            part.to(backend.device)
            if backend.device == "cpu"
            else whole.to(backend.device)[1::2, 2:9:2, :, 5:35]
        ),
        ROIS.to(backend.device),
        **pool,
    )
    torch.testing.assert_close(
        pooled.cpu(), torchvision.ops.roi_align(part.contiguous(), ROIS, 3, 1 / 8, 2), rtol=1e-5, atol=1e-5
    )
    maps = part.contiguous().to(backend.device).requires_grad_()
    roi_align(
        maps, ROIS.to(backend.device), **pool
    ).sum().backward()  # an upstream gradient with strides of 0
    judge = part.contiguous().requires_grad_()
    torchvision.ops.roi_align(judge, ROIS, 3, 1 / 8, 2).sum().backward()
    torch.testing.assert_close(maps.grad.cpu(), judge.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("deterministic", [False, True])
def test_rows_that_cannot_be_pooled(backend: Backend, layout: str, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    rois = ROIS[[0] * 9].clone()
    rois[1, 0], rois[2, 0], rois[3, 0], rois[4, 0] = -1, 2, torch.nan, 1e30
    rois[5, 3], rois[6, 2] = torch.inf, torch.nan
    rois[7, 1:] = torch.tensor([-1e30, -1e30, 1e38, 1e38])
    rois[8, 0] = -torch.inf
    maps = [each.to(backend.device) for each in pyramid(layout=layout)]
    upstream = torch.ones(9, 8, 7, 7)
    pooled, grads = gradients(
        maps,
        lambda given: multilevel_roi_align(
            given,
            rois.to(backend.device),
            7,
            [1 / 4, 1 / 8, 1 / 16],
            0,
            canonical_scale=60,
            backend=backend.name,
        ),
        upstream,
    )
    assert (
        pooled[[2, 3, 4, 5, 6]].isnan().all()
        and (pooled[[1, 8]] == 0).all()
        and pooled[[0, 7]].isfinite().all()
    )
    alone, alone_grads = gradients(
        maps,
        lambda given: multilevel_roi_align(
            given,
            rois[[0, 7]].to(backend.device),
            7,
            [1 / 4, 1 / 8, 1 / 16],
            0,
            canonical_scale=60,
            backend=backend.name,
        ),
        upstream[[0, 7]],
    )
    torch.testing.assert_close(pooled[[0, 7]], alone, rtol=0, atol=0)
    for grad, wanted in zip(grads, alone_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-6)


def test_cells_off_the_map_are_never_read(backend: Backend) -> None:
    """A map of NaN with one good corner: points off the map give 0, not NaN times 0."""
    maps = torch.full((1, 2, 20, 20), torch.nan)
    maps[..., 10:, 10:] = 1.0
    rois = torch.tensor([[0.0, 200, 200, 300, 300], [0, 128, 128, 400, 400]], device=backend.device)
    pooled = roi_align(maps.to(backend.device), rois, 4, 1 / 10, 2, backend=backend.name).cpu()
    assert pooled.isfinite().all() and (pooled[0, :, 1:] == 0).all() and (pooled[1, :, 0, 0] > 0.9).all()


def test_empty_inputs(backend: Backend) -> None:
    maps = normal_input(1, (2, 3, 5, 5)).to(backend.device)
    none = roi_align(maps.clone().requires_grad_(), ROIS[:0].to(backend.device), 7, 0.1, backend=backend.name)
    assert none.shape == (0, 3, 7, 7)
    none.sum().backward()
    assert roi_align(maps[:, :0], ROIS.to(backend.device), 7, 0.1, backend=backend.name).shape == (
        len(ROIS),
        0,
        7,
        7,
    )
    assert roi_align(maps[:0], ROIS.to(backend.device), 7, 0.1, backend=backend.name).isnan().all()
    assert (roi_align(maps[..., :0], ROIS.to(backend.device), 7, 0.1, backend=backend.name) == 0).all()


def test_maps_of_more_than_2_to_the_31_elements(backend: Backend) -> None:
    """Two channels 2^31 elements apart in one (untouched, so not resident) allocation."""
    if backend.device == "cuda":
        pytest.skip("reads 4 GiB that only an operating system hands out without touching")
    whole = torch.empty(2**31 + 16, dtype=torch.float16)
    maps = whole.as_strided((1, 2, 4, 4), (2**32, 2**31, 4, 1))
    maps.copy_(normal_input(3, (1, 2, 4, 4)))
    rois = torch.tensor([[0.0, 0, 0, 3, 3]])
    pooled = roi_align(maps, rois, 2, 1.0, 2, backend=backend.name)
    torch.testing.assert_close(
        pooled.float(),
        torchvision.ops.roi_align(maps.float().contiguous(), rois, 2, 1.0, 2),
        rtol=2e-3,
        atol=2e-3,
    )


@pytest.mark.parametrize("size", [7, 14])
def test_recorded_detnet(backend: Backend, size: int) -> None:
    maps, rois = (
        normal_input(40, (2, 6, 20, 30)).to(backend.device),
        recorded("detnet/in.roi_boxes").to(backend.device),
    )
    matches(roi_align_points(maps, rois, size, 1 / 16, backend=backend.name), f"detnet/roi_align_{size}")
    matches(
        roi_align_averaged(maps, rois, size, 1 / 16, backend=backend.name), f"detnet/roi_align_avg_{size}"
    )
    points = roi_align_points(maps, rois, size + 1, 1 / 16, backend=backend.name)
    matches(torch.nn.functional.max_pool2d(points, 2, 1), f"detnet/roi_align_max_{size}")


@pytest.mark.parametrize("deterministic", [False, True])
def test_recorded_detnet_gradient(backend: Backend, deterministic: bool) -> None:
    if deterministic and backend.device == "cuda":
        pytest.skip("torch has no deterministic average pooling on a GPU")
    rois, maps = (
        recorded("detnet/in.roi_boxes").to(backend.device),
        normal_input(40, (2, 6, 20, 30)).to(backend.device),
    )
    torch.use_deterministic_algorithms(deterministic)
    _, grads = gradients(
        [maps],
        lambda given: roi_align_averaged(given[0], rois, 7, 1 / 16, backend=backend.name),
        normal_input(41, (9, 6, 7, 7)),
    )
    matches(grads[0], "detnet/roi_align_avg_7_grad")


@pytest.mark.parametrize(
    ("name", "size", "sides"), [("detnet", 14, (128, 64, 32, 32)), ("resnet", 7, (128, 64, 32, 16))]
)
def test_recorded_detnet_pyramid(backend: Backend, name: str, size: int, sides: tuple[int, ...]) -> None:
    """One scale a level from the heights alone; levels by the +1 area, without the 1e-6."""
    rois = recorded("detnet/in.pyramid_rois").to(backend.device)
    rule = LevelRule(offset=1.0, eps=0.0)
    levels = assign_levels(rois, rule, 4)
    assert levels.tolist() == recorded("detnet/in.pyramid_levels").tolist()
    pooled = torch.zeros(len(rois), 4, size, size, device=backend.device)
    every = [
        normal_input(50 + level, (1, 4, height, height * 5 // 4)).to(backend.device)
        for level, height in enumerate(sides)
    ]
    scales = [height / 512 for height in sides]
    for level, (maps, scale) in enumerate(zip(every, scales, strict=True)):
        rows = levels == level + 2
        pooled[rows] = roi_align_averaged(maps, rois[rows], size, scale, backend=backend.name)
    matches(pooled, f"detnet/pyramid_roi_{name}")
    at_once = multilevel_roi_align_averaged(every, rois, size, scales, rule, backend=backend.name)
    assert torch.equal(at_once, pooled)
    absent = torch.cat([rois, torch.tensor([[-1.0, *[torch.nan] * 4]], device=rois.device)])
    with_absent = multilevel_roi_align_averaged(every, absent, size, scales, rule, backend=backend.name)
    assert torch.equal(with_absent[:-1], pooled) and not with_absent[-1].any()


@pytest.mark.parametrize("ratio", [0, 2])
def test_recorded_detectron(backend: Backend, ratio: int) -> None:
    maps, rois = (
        recorded("detectron/pool.features").to(backend.device),
        recorded("detectron/pool.rois").to(backend.device),
    )
    matches(
        roi_align(maps, rois, 3, 1 / 16, ratio, backend=backend.name), f"detectron/pool.roi_align_sr{ratio}"
    )


def test_recorded_levels() -> None:
    side = recorded("detectron/levels.sizes").float() - 1
    rois = torch.stack([torch.zeros_like(side)] * 3 + [side, side], 1)
    assert assign_levels(rois, LevelRule(offset=1.0), 4).tolist() == recorded("detectron/levels.fpn").tolist()
    rois = recorded("maskrcnn_benchmark/in.pool_rois")
    assert (assign_levels(rois, LevelRule(offset=1.0), 4) - 2).tolist() == recorded(
        "maskrcnn_benchmark/pool.levels"
    ).tolist()


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_recorded_maskrcnn_benchmark_pyramid(backend: Backend, size: int, layout: str) -> None:
    maps = [
        normal_input(200 + level, (2, 8, 160 >> level, 208 >> level))
        .to(backend.device)
        .contiguous(memory_format=LAYOUTS[layout])
        for level in range(4)
    ]
    pooled = multilevel_roi_align(
        maps,
        recorded("maskrcnn_benchmark/in.pool_rois").to(backend.device),
        size,
        [1 / 4, 1 / 8, 1 / 16, 1 / 32],
        2,
        level_offset=1.0,
        backend=backend.name,
    )
    matches(pooled, f"maskrcnn_benchmark/pool.fpn{size}")


def test_recorded_maskrcnn_benchmark_c4(backend: Backend) -> None:
    maps = normal_input(202, (2, 8, 40, 52)).to(backend.device)
    pooled = roi_align(
        maps,
        recorded("maskrcnn_benchmark/in.pool_rois").to(backend.device),
        14,
        1 / 16,
        0,
        backend=backend.name,
    )
    matches(pooled, "maskrcnn_benchmark/pool.c4")


@pytest.mark.parametrize(("ratio", "aligned"), [(0, True), (2, False)])
def test_gradcheck(ratio: int, aligned: bool) -> None:
    maps = [
        normal_input(7, (2, 1, 4, 5)).double().requires_grad_(),
        normal_input(8, (2, 1, 2, 3)).double().requires_grad_(),
    ]
    rois = torch.tensor([[0, 1.0, 2, 14, 13], [1, -5, -4, 60, 40]], dtype=torch.float64)

    def pool(*given: torch.Tensor) -> torch.Tensor:
        return multilevel_roi_align(
            given, rois, 2, [0.25, 0.125], ratio, aligned, canonical_scale=40, min_level=3
        )

    assert torch.autograd.gradcheck(pool, maps) and torch.autograd.gradgradcheck(pool, maps, fast_mode=True)
    assert torch.autograd.gradcheck(lambda given: roi_align_points(given, rois, 2, 0.25), maps[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("ratio", "aligned"), [(0, True), (0, False), (2, False), (3, True)])
def test_the_form_for_cpus_is_the_reference_to_the_last_bits(
    dtype: torch.dtype, layout: str, ratio: int, aligned: bool
) -> None:
    """Sums of n terms in another order: at most n + 4 ulps of the sum of their absolute values."""
    maps, rois = pyramid(dtype, layout, channels=40), ROIS.to(dtype)
    sides = (rois[:, 3:] - rois[:, 1:3]).abs().amax(1) / 4 / 7
    points = torch.full_like(sides, ratio) if ratio else sides.ceil().clamp(min=1)
    terms = 4 * points.square()[:, None, None, None]

    def pool(given: list[torch.Tensor], backend: str) -> torch.Tensor:
        return multilevel_roi_align(
            given, rois, 7, [1 / 4, 1 / 8, 1 / 16], ratio, aligned, canonical_scale=60, backend=backend
        )

    absolute = pool([each.abs() for each in maps], "reference")
    difference = (pool(maps, "cpu") - pool(maps, "reference")).abs()
    assert (difference <= (terms + 4) * torch.finfo(dtype).eps * absolute).all()
    upstream = normal_input(81, (len(ROIS), 40, 7, 7))
    grads = [
        gradients(maps, lambda given, name=name: pool(given, name), upstream)[1]
        for name in ("cpu", "reference")
    ]
    for grad, expected in zip(*grads, strict=True):
        assert (grad - expected).norm() <= 16 * torch.finfo(dtype).eps * expected.norm()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_do_not_change_a_bit(layout: str) -> None:
    rois = torch.cat([ROIS] * 9) + torch.cat([torch.zeros(63, 1), normal_input(5, (63, 4))], 1)
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(
            gradients(
                pyramid(layout=layout, channels=50),
                lambda given: multilevel_roi_align(
                    given, rois, 7, [1 / 4, 1 / 8, 1 / 16], 2, canonical_scale=60, backend="cpu"
                ),
                normal_input(6, (63, 50, 7, 7)),
            )
        )
    torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(*pair) for pair in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_deterministic_form_never_varies(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    """Threads in three orders: the ordered sums are equal bit for bit, where the atomic ones need not be."""
    torch.use_deterministic_algorithms(True)
    rois = torch.cat([ROIS] * 20) + torch.cat([torch.zeros(140, 1), normal_input(5, (140, 4))], 1)
    found = []
    for order in (0, 1, SHUFFLED):
        monkeypatch.setattr("detection_zoo.kernels.launch.runner", CudaOnCpu(order))
        found.append(
            gradients(
                pyramid(layout=layout),
                lambda given: multilevel_roi_align(
                    given, rois, 7, [1 / 4, 1 / 8, 1 / 16], 2, canonical_scale=60, backend="cuda"
                ),
                normal_input(6, (140, 8, 7, 7)),
            )[1]
        )
    assert all(
        torch.equal(one, other)
        for level in zip(*found, strict=True)
        for one, other in zip(level, level[1:], strict=False)
    )
    assert all(grad.abs().sum() > 0 for grad in found[0])


@pytest.mark.parametrize(
    ("maps", "rois", "more"),
    [
        ([torch.zeros(1, 2, 4)], ROIS, {}),
        ([torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)], ROIS, {}),
        ([torch.zeros(1, 2, 4, 4).long()], ROIS, {}),
        ([torch.zeros(1, 2, 4, 4)], ROIS[:, 1:], {}),
        ([torch.zeros(1, 2, 4, 4)], ROIS.long(), {}),
        ([], ROIS, {}),
        ([torch.zeros(1, 2, 4, 4)], ROIS, {"sampling_ratio": -1}),
        ([torch.zeros(1, 2, 4, 4)], ROIS, {"output_size": 0}),
    ],
)
def test_shapes_that_raise(maps: list[torch.Tensor], rois: torch.Tensor, more: dict) -> None:
    with pytest.raises(ValueError, match="must be|at least"):
        multilevel_roi_align(maps, rois, **({"output_size": 7, "scales": [0.25] * len(maps)} | more))


def test_more_levels_than_a_launch_takes(backend: Backend) -> None:
    if backend.name in ("reference", "cpu"):
        pytest.skip("only a launch has a limit")
    with pytest.raises(ValueError, match="at most 8"):
        multilevel_roi_align(
            [torch.zeros(1, 1, 2, 2, device=backend.device)] * 9,
            ROIS.to(backend.device),
            7,
            [0.25] * 9,
            backend=backend.name,
        )


@pytest.mark.parametrize(
    ("dtype", "size", "loaded", "band"),
    [("float32", 7, 16, 7), ("float32", 14, 8, 7), ("float16", 14, 8, 7), ("float32", 9, 16, 9)],
)
def test_bins_of_nchw_output_are_loaded_more_than_a_channel_at_a_time(
    dtype: str, size: int, loaded: int, band: int
) -> None:
    """Bytes of a load, and rows of bins in the tile: 14 rows of wide loads would not fit a block's memory."""
    maps = [torch.zeros(1, 64, 8, 9, dtype=getattr(torch, dtype)).to(memory_format=torch.channels_last)]
    pack, rows, shared = _pack(maps, (size, size), channels_last=False)
    assert (pack * maps[0].element_size(), rows) == (loaded, band) and shared <= SHARED_BYTES


def test_more_bins_than_a_block_has_shared_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detection_zoo.kernels.launch.runner", CudaOnCpu())
    for layout in (torch.contiguous_format, torch.channels_last):
        features = torch.ones(1, 4, 8, 8).contiguous(memory_format=layout)
        with pytest.raises(ValueError, match="shared memory, a block has 49152; pool to fewer bins"):
            roi_align(features, torch.tensor([[0.0, 0, 0, 7, 7]]), 300, 1.0, 2, backend="cuda")
