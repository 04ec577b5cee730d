"""Detections of made-up models on made-up images, drawn from a seed, as COCO documents: categories of very
different frequency and difficulty."""

from __future__ import annotations

from typing import Any

import numpy as np


def made_up_set(
    images: int, categories: int, seed: int, models: int = 1, tail: float = 1.0
) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """Ground truth, and the results of so many models of equal skill that err independently.

    Category k occurs like 1 / k ** tail. A box is found with a shift that depends on how hard its object is;
    false boxes stand anywhere.
    """
    draw = np.random.default_rng(seed)
    share = 1 / np.arange(1, categories + 1) ** tail
    share /= share.sum()
    skill = draw.normal(0, 0.7, categories)
    document: dict[str, Any] = {
        "images": [
            {"id": n + 1, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in range(images)
        ],
        "categories": [{"id": k + 1, "name": f"thing {k}"} for k in range(categories)],
        "annotations": [],
    }
    results: list[list[dict[str, Any]]] = [[] for _ in range(models)]
    for image in range(1, images + 1):
        for category in range(categories):
            count = draw.poisson(7 * share[category])
            for _ in range(count):
                side = float(np.exp(draw.normal(4.4, 0.6)))
                box = [*(draw.uniform(0, [600, 440])), side, side * draw.uniform(0.6, 1.6)]
                document["annotations"].append(
                    {
                        "id": len(document["annotations"]) + 1,
                        "image_id": image,
                        "category_id": category + 1,
                        "iscrowd": 0,
                        "bbox": [float(v) for v in box],
                        "area": box[2] * box[3],
                    }
                )
                ease = skill[category] + draw.normal(0, 1)
                for found in results:
                    if draw.random() < 1 / (1 + np.exp(-1.3 * (ease + 1.5))):
                        found.append(_found(image, category, box, ease, draw))
            for found in results:
                found += [
                    _false(image, category, skill[category], draw)
                    for _ in range(draw.poisson(0.02 + 0.5 * count + 0.2 * share[category]))
                ]
    return document, results


def _found(
    image: int, category: int, box: list[float], ease: float, draw: np.random.Generator
) -> dict[str, Any]:
    shift = 0.22 * np.exp(-0.4 * ease) * draw.normal(0, 1, 4) * [box[2], box[3], box[2], box[3]] * 0.5
    moved = [box[0] + shift[0], box[1] + shift[1], max(box[2] + shift[2], 1), max(box[3] + shift[3], 1)]
    return {
        "image_id": image,
        "category_id": category + 1,
        "bbox": [float(v) for v in moved],
        "score": float(1 / (1 + np.exp(-(ease + draw.normal(0, 1))))),
    }


def _false(image: int, category: int, skill: float, draw: np.random.Generator) -> dict[str, Any]:
    side = float(np.exp(draw.normal(4.4, 0.6)))
    box = [*(draw.uniform(0, [600, 440])), side, side]
    return {
        "image_id": image,
        "category_id": category + 1,
        "bbox": [float(v) for v in box],
        "score": float(1 / (1 + np.exp(-draw.normal(-1.6 + 0.3 * skill, 1.1)))),
    }
