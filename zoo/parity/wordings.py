"""Templates of the notes in which each source's folders state settings; `zoo.parity.prose` reads by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

Template = str | tuple[str, ...]


class Wording:
    """Templates of the notes whose path matches a pattern.

    In a template "{field}" is a hole of that field's type, "{}" a whole number that is not used, "..." is
    any words, "<of|to>" for one of these words or none. Of several in a tuple the first that fits is used.
    arrays: how many arrays the note must state. where: phrase -> template that is needed where the phrase
    occurs. optional: templates that need not fit. flags: field -> regular expression of its phrase.
    """

    def __init__(
        self,
        path: str,
        *templates: Template,
        arrays: int = 0,
        where: Mapping[str, Template] = MappingProxyType({}),
        optional: Sequence[Template] = (),
        flags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.path, self.templates, self.arrays = path, templates, arrays
        self.where, self.optional, self.flags = where, optional, flags


_SEED = "RandomState({seed})"
_IMAGE = {
    "optional": (
        f"clip(rint({{means}} + {{noise}}*{_SEED}.standard_normal({{shape}})",
        f"{_SEED}.randint(0,256,{{shape}})",
        ("repeated {repeat} times",),
    )
}
_RESIZED = ("resized with min {short} max {longest}", "{short}/{longest} rule")
_FORMULA = (
    "image[y,x,c]=({across}x+{down}y+{channel}c+(x*y mod {inner})) mod {outer}, {height} high {width} wide"
)
_ADVICE = (
    "{maps} for maps...{lists} for boxes...{gradients} for gradients",
    "floats {tolerance}",
    "{tolerance} relative L2",
)
_LIMITS = (
    "({pre_nms}/{post_nms}/{collect}, NMS {nms_iou}",
    "pre {pre_nms}< and|,> post {post_nms}...the best {collect} over BOTH",
    "pre {pre_nms}< and|,> post {post_nms}...{collect} an image",
)
WORDINGS: dict[str, tuple[Wording, ...]] = {
    "maskrcnn_benchmark": (
        Wording(
            "inputs.*",
            where={
                "padded": "padded...({},3,{padded_height},{padded_width})",
                "true size": "true size...{true_sizes}",
            },
        ),
        Wording("tolerance.advice", _ADVICE),
        Wording("outputs.anchors.all.*.x1.meaning", "grids [{grids}]"),
        Wording("outputs.anchors.visible.*.meaning", "true image size {height}x{width} (height x width)"),
        Wording("outputs.coder.*.decode_classes.meaning", "columns of the first {classes} classes", arrays=1),
        Wording("outputs.coder.*.encode.meaning", "weights {weights}"),
        Wording("outputs.coder.*.decode.meaning", "weights {weights}", arrays=1),
        Wording("outputs.iou.meaning", "in.boxes.a[:{first}]"),
        Wording("outputs.boxes.flip.meaning", "in.boxes.a[:{first}] in an image {width} wide"),
        Wording(
            "outputs.boxes.resized_xywh.meaning",
            "scaled from {width}x{height} to {new_width}x{new_height} (w x h)",
        ),
        Wording("outputs.boxes.small.meaning", "sides >= {min_size}"),
        Wording(
            "outputs.match.*.meaning",
            "matcher {foreground_iou}/{background_iou}",
            flags={"low_quality": "low-quality"},
        ),
        Wording("outputs.nms.[0-9]*.meaning", "kept positions at {nms_iou},"),
        Wording(
            "outputs.nms.*pair.meaning",
            "boxes {width}x{height} shifted by {down_by} rows...suppressed at {nms_iou}",
        ),
        Wording(
            "outputs.rpn.*.x1.meaning",
            "min size {min_size}",
            _LIMITS,
            where={
                "ground truth": "ground truth in.boxes.a{rows}",
                "true sizes": "levels...sizes [{grids}], true sizes (h,w) {true_sizes}",
            },
            flags={"training": "training mode"},
        ),
        Wording(
            "outputs.box[0-9]*.boxes.meaning",
            "score {score_threshold}, NMS {nms_iou}, {max_detections} an image",
            arrays=2,
        ),
        Wording("outputs.in.box[0-9]*.boxes.meaning", "image {width} wide {height} high"),
        Wording(
            "outputs.retinanet.boxes.meaning", "levels [{grids}]", "true size {height}x{width}", arrays=2
        ),
        Wording(
            "outputs.pool.fpn*.meaning",
            "to {pooled}x{}, sampling {sampling}",
            where={"of sizes": "of sizes ({first_height},{first_width})..({last_height},{last_width})"},
        ),
        Wording(
            "outputs.pool.c4*.meaning",
            "pooling {pooled}x{}, scale 1/{stride}, adaptive sampling ({sampling})",
        ),
        Wording(
            "outputs.paste.mask*.meaning",
            ")))[{place}]",
            "in a {width}x{height} (w x h) image",
            "at {box}",
            arrays=1,
        ),
        Wording(
            "outputs.mask_target.*.meaning",
            "{}x{side} target of polygon {place} of 'mask_target_polygons' in box {box}",
        ),
        Wording("outputs.keypoints.x.meaning", "boxes {boxes}", arrays=1),
        Wording("outputs.keypoint_target.index.meaning", "boxes {boxes}", "y*{side}+x"),
        Wording("outputs.keypoint_flip.meaning", "in a {width}x{} image"),
        Wording("outputs.loss.smooth_l1.*.meaning", "beta {beta}"),
        Wording("outputs.loss.focal.meaning", "gamma {gamma}", "alpha {alpha}", arrays=1),
        Wording("outputs.image.*.size.meaning", _FORMULA, _RESIZED),
        Wording("outputs.image.test_sizes.meaning", _RESIZED),
        Wording("outputs.image.padded_sizes.meaning", "multiples of {divisor}"),
    ),
    "detectron_pytorch": (
        Wording("how", arrays=1),
        Wording(
            "inputs.fixed_boxes",
            where={"uses": "input {input} uses boxes number {box_numbers} with batch indices {box_images}"},
        ),
        Wording("inputs.det", "im_scale {scale}", "{height}x{width} image"),
        Wording("inputs.det_vote", "VOTE_TH {vote_iou}"),
        Wording(
            "inputs.img",
            f"means + {{noise}}*{_SEED}.standard_normal({{shape}})",
            "TEST.SCALE={short}",
            "TEST.MAX_SIZE={longest}",
        ),
        Wording(
            "inputs.img_tta",
            ("(...boxes", "(...masks", "(...keypoints"),
            where={
                "SCALES": "SCALES ({scales}<,>)",
                "MAX_SIZE": "MAX_SIZE {max_size}",
                "ASPECT_RATIOS": "ASPECT_RATIOS ({aspect_ratios}<,>)",
            },
            flags={
                **{
                    f"augment_{kind}": rf"\([^()]*{kind}(?!: off)" for kind in ("boxes", "masks", "keypoints")
                },
                **{"flip": r"\bH_FLIP\b", "scale_flip": r"\bSCALE_H_FLIP\b"},
                "aspect_flip": r"\bASPECT_RATIO_H_FLIP\b",
            },
        ),
        Wording("inputs.[ab]", "im_info {im_info}", arrays=1),
        Wording("training.how", "at scale {scale}", "numpy seed {seed}", arrays=1),
    ),
    "detnet": (
        Wording("inputs.feature_map", "1/{stride}", arrays=1),
        Wording("inputs.*"),
        Wording("train.input", arrays=1),
        Wording("train.numpy_seed", "seed({seed})"),
        Wording("train.learning_rate_by_epoch.*", ("step {decay_epochs}", "lr_decay {decay_epochs}")),
        Wording(
            "outputs.soft_nms_method?.meaning", "sigma {sigma}, Nt {nms_iou}, threshold {score_threshold}"
        ),
        Wording("outputs.anchor_labels_*.meaning", "RPN_BATCHSIZE {samples}, np.random.seed({seed})"),
        Wording("outputs.proposal_target_rois.meaning", "seed({seed})"),
        Wording(
            "outputs.smooth_l1_sigma3.meaning",
            f"{_SEED}.random_sample({{shape}})<{{share}}",
            "inside/{parts}",
            arrays=2,
        ),
        Wording("outputs.roi_pool_*_cpu.meaning", "minus {minus}"),
        Wording("outputs.pyramid_roi_*.meaning", "pooled size {pooled}", arrays=1),
        Wording("outputs.upsample_add.meaning", arrays=2),
        Wording(
            "outputs.prep_image_*.meaning",
            optional=(
                ("target <size |of |to ><(>{short}", "shorter side <size |of |to ><(>{short}"),
                "longest side <of |to ><(>{longest}",
            ),
        ),
        Wording("outputs.decode_clipped.meaning", "im_info {im_info}"),
        Wording("outputs.detections*.meaning", "im_info {im_info}"),
        Wording("outputs.*_grad.meaning"),
        Wording("outputs.rpn_pairing_prob.meaning", arrays=1),
        Wording("outputs.maxpool_detnet.meaning", arrays=1),
    ),
    "hardnet": (
        Wording("inputs.*", **_IMAGE),
        Wording("transform.small", **_IMAGE),
        Wording("transform.large", **_IMAGE),
        Wording("postprocess.background_filter", "at least {background_filter}"),
        Wording("postprocess.nms", flags={"without_plus_one": r"no \+1"}),
        *(Wording(f"{step}_*.loc", arrays=1) for step in ("loss", "detect")),
        *(Wording(path, "{added} added to column 0", arrays=1) for path in ("loss_*.conf", "detect_*.prob")),
        Wording("array_meaning.boxes|decode", arrays=1),
        Wording("log_sum_exp.input", arrays=1),
        Wording(
            "nms.boxes", f"{_SEED}: xy=uniform({{low}},{{high}},({{count}},2)), wh=uniform({{least}},{{most}}"
        ),
        Wording("caution", where={"Hold `": "Hold `{run}` for updates 1 and {updates}"}),
    ),
}
CHECKPOINT_FORMAT = Wording("format", flags={"wrapped": "^(?!.*no wrapper).*'model'"})  # of checkpoint.json
