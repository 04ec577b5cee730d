"""Detectron's configuration options: their defaults, and those that change nothing. Facts, as Detectron.pytorch has them. No torch.

A configuration file names only what differs, so reading one needs the defaults of everything else.
"""
from __future__ import annotations

from typing import Any

_AUGMENTATION = {"ENABLED": False, "H_FLIP": False, "SCALES": (), "MAX_SIZE": 4000, "SCALE_H_FLIP": False, "SCALE_SIZE_DEP": False, "ASPECT_RATIOS": (),
                 "ASPECT_RATIO_H_FLIP": False}
_POOLING = {"ROI_XFORM_METHOD": "RoIAlign", "ROI_XFORM_RESOLUTION": 7, "ROI_XFORM_SAMPLING_RATIO": 0}

DEFAULTS: dict[str, Any] = {
    "TRAIN": {
        "WEIGHTS": "", "DATASETS": (), "SCALES": (600,), "MAX_SIZE": 1000, "IMS_PER_BATCH": 2, "BATCH_SIZE_PER_IM": 64, "FG_FRACTION": 0.25,
        "FG_THRESH": 0.5, "BG_THRESH_HI": 0.5, "BG_THRESH_LO": 0.0, "USE_FLIPPED": True, "BBOX_THRESH": 0.5, "PROPOSAL_FILES": (), "SNAPSHOT_ITERS": 20000,
        "BBOX_NORMALIZE_TARGETS": True, "BBOX_INSIDE_WEIGHTS": (1.0, 1.0, 1.0, 1.0), "BBOX_NORMALIZE_TARGETS_PRECOMPUTED": False,
        "BBOX_NORMALIZE_MEANS": (0.0, 0.0, 0.0, 0.0), "BBOX_NORMALIZE_STDS": (0.1, 0.1, 0.2, 0.2), "ASPECT_GROUPING": True, "ASPECT_CROPPING": False,
        "ASPECT_HI": 2.0, "ASPECT_LO": 0.5, "RPN_POSITIVE_OVERLAP": 0.7, "RPN_NEGATIVE_OVERLAP": 0.3, "RPN_FG_FRACTION": 0.5, "RPN_BATCH_SIZE_PER_IM": 256,
        "RPN_NMS_THRESH": 0.7, "RPN_PRE_NMS_TOP_N": 12000, "RPN_POST_NMS_TOP_N": 2000, "RPN_STRADDLE_THRESH": 0, "RPN_MIN_SIZE": 0,
        "CROWD_FILTER_THRESH": 0.7, "GT_MIN_AREA": -1, "FREEZE_CONV_BODY": False, "AUTO_RESUME": True, "FREEZE_AT": 2,
    },
    "DATA_LOADER": {"NUM_THREADS": 4, "MINIBATCH_QUEUE_SIZE": 64, "BLOBS_QUEUE_CAPACITY": 8},
    "TEST": {
        "WEIGHTS": "", "DATASETS": (), "SCALE": 600, "SCALES": (), "MAX_SIZE": 1000, "NMS": 0.3, "BBOX_REG": True, "PROPOSAL_FILES": (),
        "PROPOSAL_LIMIT": 2000, "RPN_NMS_THRESH": 0.7, "RPN_PRE_NMS_TOP_N": 12000, "RPN_POST_NMS_TOP_N": 2000, "RPN_MIN_SIZE": 0, "DETECTIONS_PER_IM": 100,
        "SCORE_THRESH": 0.05, "COMPETITION_MODE": True, "FORCE_JSON_DATASET_EVAL": False, "PRECOMPUTED_PROPOSALS": True,
        "BBOX_AUG": {**_AUGMENTATION, "SCORE_HEUR": "UNION", "COORD_HEUR": "UNION", "AREA_TH_LO": 2500, "AREA_TH_HI": 32400},
        "MASK_AUG": {**_AUGMENTATION, "HEUR": "SOFT_AVG", "AREA_TH": 32400},
        "KPS_AUG": {**_AUGMENTATION, "HEUR": "HM_AVG", "AREA_TH": 32400},
        "SOFT_NMS": {"ENABLED": False, "METHOD": "linear", "SIGMA": 0.5},
        "BBOX_VOTE": {"ENABLED": False, "VOTE_TH": 0.8, "SCORING_METHOD": "ID", "SCORING_METHOD_BETA": 1.0},
    },
    "MODEL": {
        "TYPE": "", "CONV_BODY": "", "NUM_CLASSES": -1, "CLS_AGNOSTIC_BBOX_REG": False, "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0), "FASTER_RCNN": False,
        "MASK_ON": False, "KEYPOINTS_ON": False, "RPN_ONLY": False, "SHARE_RES5": False, "LOAD_IMAGENET_PRETRAINED_WEIGHTS": True,
        "UNSUPERVISED_POSE": False, "EXECUTION_TYPE": "dag",
    },
    "RETINANET": {
        "RETINANET_ON": False, "ASPECT_RATIOS": (0.5, 1.0, 2.0), "SCALES_PER_OCTAVE": 3, "ANCHOR_SCALE": 4, "NUM_CONVS": 4, "BBOX_REG_WEIGHT": 1.0,
        "BBOX_REG_BETA": 0.11, "PRE_NMS_TOP_N": 1000, "POSITIVE_OVERLAP": 0.5, "NEGATIVE_OVERLAP": 0.4, "LOSS_ALPHA": 0.25, "LOSS_GAMMA": 2.0,
        "PRIOR_PROB": 0.01, "SHARE_CLS_BBOX_TOWER": False, "CLASS_SPECIFIC_BBOX": False, "SOFTMAX": False, "INFERENCE_TH": 0.05,
    },
    "SOLVER": {
        "TYPE": "SGD", "BASE_LR": 0.001, "LR_POLICY": "step", "GAMMA": 0.1, "STEP_SIZE": 30000, "STEPS": [], "LRS": [], "MAX_ITER": 40000, "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 0.0005, "WEIGHT_DECAY_GN": 0.0, "BIAS_DOUBLE_LR": True, "BIAS_WEIGHT_DECAY": False, "WARM_UP_ITERS": 500,
        "WARM_UP_FACTOR": 1.0 / 3.0, "WARM_UP_METHOD": "linear", "SCALE_MOMENTUM": True, "SCALE_MOMENTUM_THRESHOLD": 1.1, "LOG_LR_CHANGE_THRESHOLD": 1.1,
    },
    "FAST_RCNN": {"ROI_BOX_HEAD": "", "MLP_HEAD_DIM": 1024, "CONV_HEAD_DIM": 256, "NUM_STACKED_CONVS": 4, "ROI_XFORM_METHOD": "RoIPoolF",
                  "ROI_XFORM_RESOLUTION": 14, "ROI_XFORM_SAMPLING_RATIO": 0},
    "RPN": {"RPN_ON": False, "OUT_DIM_AS_IN_DIM": True, "OUT_DIM": 512, "CLS_ACTIVATION": "sigmoid", "SIZES": (64, 128, 256, 512), "STRIDE": 16,
            "ASPECT_RATIOS": (0.5, 1, 2)},
    "FPN": {
        "FPN_ON": False, "DIM": 256, "ZERO_INIT_LATERAL": False, "COARSEST_STRIDE": 32, "MULTILEVEL_ROIS": False, "ROI_CANONICAL_SCALE": 224,
        "ROI_CANONICAL_LEVEL": 4, "ROI_MAX_LEVEL": 5, "ROI_MIN_LEVEL": 2, "MULTILEVEL_RPN": False, "RPN_MAX_LEVEL": 6, "RPN_MIN_LEVEL": 2,
        "RPN_ASPECT_RATIOS": (0.5, 1, 2), "RPN_ANCHOR_START_SIZE": 32, "RPN_COLLECT_SCALE": 1.0, "EXTRA_CONV_LEVELS": False, "USE_GN": False,
    },
    "MRCNN": {"ROI_MASK_HEAD": "", "RESOLUTION": 14, **_POOLING, "DIM_REDUCED": 256, "DILATION": 2, "UPSAMPLE_RATIO": 1, "USE_FC_OUTPUT": False,
              "CONV_INIT": "GaussianFill", "CLS_SPECIFIC_MASK": True, "WEIGHT_LOSS_MASK": 1.0, "THRESH_BINARIZE": 0.5, "MEMORY_EFFICIENT_LOSS": True},
    "KRCNN": {
        "ROI_KEYPOINTS_HEAD": "", "HEATMAP_SIZE": -1, "UP_SCALE": -1, "USE_DECONV": False, "DECONV_DIM": 256, "USE_DECONV_OUTPUT": False, "DILATION": 1,
        "DECONV_KERNEL": 4, "NUM_KEYPOINTS": -1, "NUM_STACKED_CONVS": 8, "CONV_HEAD_DIM": 256, "CONV_HEAD_KERNEL": 3, "CONV_INIT": "GaussianFill",
        "NMS_OKS": False, "KEYPOINT_CONFIDENCE": "bbox", **_POOLING, "MIN_KEYPOINT_COUNT_FOR_VALID_MINIBATCH": 20, "INFERENCE_MIN_SIZE": 0,
        "LOSS_WEIGHT": 1.0, "NORMALIZE_BY_VISIBLE_KEYPOINTS": True,
    },
    "RFCN": {"PS_GRID_SIZE": 3},
    "RESNETS": {
        "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64, "STRIDE_1X1": True, "TRANS_FUNC": "bottleneck_transformation", "STEM_FUNC": "basic_bn_stem",
        "SHORTCUT_FUNC": "basic_bn_shortcut", "RES5_DILATION": 1, "FREEZE_AT": 2, "IMAGENET_PRETRAINED_WEIGHTS": "", "USE_GN": False,
    },
    "GROUP_NORM": {"DIM_PER_GP": -1, "NUM_GROUPS": 32, "EPSILON": 1e-5},
    "NUM_GPUS": 1, "DEDUP_BOXES": 1.0 / 16, "BBOX_XFORM_CLIP": 4.135166556742356, "PIXEL_MEANS": [[[102.9801, 115.9465, 122.7717]]], "RNG_SEED": 3,
    "EPS": 1e-14, "ROOT_DIR": "", "OUTPUT_DIR": "Outputs", "MATLAB": "matlab", "VIS": False, "VIS_TH": 0.9, "EXPECTED_RESULTS": [],
    "EXPECTED_RESULTS_RTOL": 0.1, "EXPECTED_RESULTS_ATOL": 0.005, "EXPECTED_RESULTS_EMAIL": "", "EXPECTED_RESULTS_SIGMA_TOL": 4, "DATA_DIR": "",
    "POOLING_MODE": "crop", "POOLING_SIZE": 7, "CROP_RESIZE_WITH_MAX_POOL": True, "CUDA": False, "DEBUG": False, "PYTORCH_VERSION_LESS_THAN_040": False,
    "USE_NCCL": False, "CLUSTER": {"ON_CLUSTER": False}, "MEMONGER": True, "MEMONGER_SHARE_ACTIVATIONS": False, "DOWNLOAD_CACHE": "",
}

# Options whose value changes neither the model nor its training nor its results, with the reason.
WITHOUT_EFFECT: dict[str, str] = {
    "SOLVER.LR_POLICY": "the rate always falls at SOLVER.STEPS",
    "SOLVER.STEP_SIZE": "only another rate policy reads it", "SOLVER.LRS": "only another rate policy reads it",
    "SOLVER.LOG_LR_CHANGE_THRESHOLD": "logging",
    "TRAIN.SNAPSHOT_ITERS": "how often a training is saved is the caller's choice here",
    "TRAIN.BBOX_THRESH": "only precomputed proposals read it", "TRAIN.BBOX_NORMALIZE_TARGETS": "not read with a region proposal network",
    "TRAIN.BBOX_INSIDE_WEIGHTS": "deprecated, never read", "TRAIN.BBOX_NORMALIZE_MEANS": "not read unless targets are normalised by given numbers",
    "TRAIN.BBOX_NORMALIZE_STDS": "not read unless targets are normalised by given numbers",
    "TRAIN.CROWD_FILTER_THRESH": "crowd filtering is off with a region proposal network", "TRAIN.AUTO_RESUME": "resuming is the caller's choice here",
    "TRAIN.ASPECT_GROUPING": "the batch sampler's business", "TRAIN.USE_FLIPPED": "the data set's business",
    "TRAIN.ASPECT_HI": "read only with TRAIN.ASPECT_CROPPING", "TRAIN.ASPECT_LO": "read only with TRAIN.ASPECT_CROPPING",
    "TRAIN.PROPOSAL_FILES": "not read with a region proposal network", "TEST.PROPOSAL_FILES": "not read with a region proposal network",
    "TEST.PROPOSAL_LIMIT": "only precomputed proposals read it", "TEST.PRECOMPUTED_PROPOSALS": "inferred from the other options",
    "TEST.COMPETITION_MODE": "which result files stay on disk", "TEST.FORCE_JSON_DATASET_EVAL": "which evaluation is run is the data set's business here",
    "TEST.BBOX_VOTE.SCORING_METHOD_BETA": "the original never hands it on",
    "MODEL.EXECUTION_TYPE": "an option of Caffe2's scheduler", "MODEL.UNSUPERVISED_POSE": "never read",
    "MODEL.SHARE_RES5": "inferred from the mask head", "RPN.RPN_ON": "inferred from MODEL.FASTER_RCNN", "RPN.STRIDE": "the backbone's own stride is used",
    "MRCNN.MEMORY_EFFICIENT_LOSS": "never read", "KRCNN.DILATION": "never read",
    "KRCNN.MIN_KEYPOINT_COUNT_FOR_VALID_MINIBATCH": "computed, and never acted on", "RFCN.PS_GRID_SIZE": "no model reads it",
    "RESNETS.USE_GN": "the three *_FUNC options choose the norm; this one only says which names a checkpoint has",
    "DEDUP_BOXES": "only precomputed proposals read it", "RNG_SEED": "seeds are the caller's choice here", "EPS": "never read",
    "ROOT_DIR": "a folder", "DATA_DIR": "a folder", "OUTPUT_DIR": "a folder", "DOWNLOAD_CACHE": "a folder", "MATLAB": "a program",
    "VIS": "drawing", "VIS_TH": "drawing", "EXPECTED_RESULTS": "self-check of a run", "EXPECTED_RESULTS_RTOL": "self-check of a run",
    "EXPECTED_RESULTS_ATOL": "self-check of a run", "EXPECTED_RESULTS_EMAIL": "self-check of a run", "EXPECTED_RESULTS_SIGMA_TOL": "self-check of a run",
    "POOLING_MODE": "deprecated, never read", "POOLING_SIZE": "deprecated, never read", "CUDA": "inferred", "DEBUG": "debugging",
    "PYTORCH_VERSION_LESS_THAN_040": "inferred", "USE_NCCL": "how GPUs talk", "CLUSTER.ON_CLUSTER": "where it runs", "MEMONGER": "Caffe2's memory",
    "MEMONGER_SHARE_ACTIVATIONS": "Caffe2's memory", "DATA_LOADER.NUM_THREADS": "loading speed", "DATA_LOADER.MINIBATCH_QUEUE_SIZE": "loading speed",
    "DATA_LOADER.BLOBS_QUEUE_CAPACITY": "loading speed",
}
