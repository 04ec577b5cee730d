"""Image files to pixels, as Pillow or as OpenCV reads them; what either would pass over in silence is an
error here."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np

from detection_zoo.zoo.errors import DatasetError


def decode_image(data: bytes, where: str, decoder: Literal["pil", "cv2"] = "pil") -> np.ndarray:
    """Decode an encoded image to (H, W, 3) uint8 RGB; grey, palette, alpha and CMYK images are converted.

    Args:
        data: the bytes of a JPEG, PNG ... file.
        where: name of the file, for messages.
        decoder: "pil" keeps the stored orientation (maskrcnn-benchmark, DetNet_pytorch, torchvision); "cv2"
            turns the image as its EXIF tag says (Detectron, SSD). On ordinary JPEG files both give the same
            pixels.

    Raises:
        DatasetError: not an image, or cut short.
    """
    if not data:
        raise DatasetError(f"{where}: the file is empty; download the image again")
    if data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise DatasetError(
            f"{where}: the JPEG file is cut short (no end marker after its last scan); download the image"
            " again"
        )
    return _decode_pil(data, where) if decoder == "pil" else _decode_cv2(data, where)


def _decode_pil(data: bytes, where: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        raise DatasetError(
            f"{where}: cannot be decoded as an image, by its first bytes it is none; if it should be one,"
            " download it again"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{where}: cannot be decoded as an image ({error}); download it again") from None


def _decode_cv2(data: bytes, where: str) -> np.ndarray:
    import cv2

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DatasetError(f"{where}: cannot be decoded as an image; download it again")
    return np.ascontiguousarray(image[:, :, ::-1])
