"""Decode image files with Pillow or OpenCV; errors that either of them ignores are raised here."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from detection_zoo.zoo.data.jpeg import is_jpeg, jpeg_problem
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.regular import open_regular

if TYPE_CHECKING:
    from PIL import Image

# Pillow's safe readers: its EPS reader would start Ghostscript
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "TGA", "AVIF")
MAX_MEGAPIXELS = "DETECTION_ZOO_MAX_MEGAPIXELS"  # an environment variable
DEFAULT_MEGAPIXELS = 64.0  # decoding takes up to 10 bytes a pixel
_HEAD = 2**18  # bytes, for the size of an image
_PNG = b"\x89PNG"
_ORIENTATION = 0x0112  # EXIF tag
_limit = threading.Lock()  # Pillow's own limit is one for the whole process


def decode_image(data: bytes, where: str, decoder: Literal["pil", "cv2"] = "pil") -> np.ndarray:
    """Decode an encoded image to (H, W, 3) uint8 RGB; grey, palette, alpha and CMYK images are converted.

    Grey images of 16 bits keep their upper eight bits with both decoders, as OpenCV has it.

    Args:
        data: the bytes of a JPEG, PNG ... file.
        where: name of the file, for messages.
        decoder: "pil" keeps the stored orientation (maskrcnn-benchmark, DetNet_pytorch, torchvision); "cv2"
            rotates the image by its EXIF tag (Detectron, SSD). On ordinary JPEG files both give the same
            pixels.

    Raises:
        DatasetError: not an image, cut short, or of more pixels than the budget of 64 megapixels; the
            environment variable DETECTION_ZOO_MAX_MEGAPIXELS sets another one.
    """
    if not data:
        raise DatasetError(f"{where}: the file is empty; download the image again")
    if is_jpeg(data) and (problem := jpeg_problem(data)):
        raise DatasetError(f"{where}: the JPEG file {problem}; download the image again")
    if data[:4] == _PNG and b"IEND" not in data:
        raise DatasetError(f"{where}: the PNG file cannot be decoded, it is cut short; download it again")
    with _opened(data, where) as image:
        _check_size(image.size, where)
        return _decode_pil(image, where) if decoder == "pil" else _decode_cv2(data, where)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels by the header of an image file.

    Raises:
        DatasetError: the file is missing or no image, or its EXIF tag rotates it: without a size, it is
            unknown for which orientation an annotation was made.
    """
    try:
        with open_regular(path) as file:
            data = file.read(_HEAD)
            try:
                image = _opened(data, str(path))
            except DatasetError:  # a longer header
                image = _opened(data + file.read(), str(path))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such image; unpack the images") from None
    except ValueError as error:
        raise DatasetError(f"{str(path)!r:.300}: {error}; correct the path, or remove it") from None
    with image:
        width, height = image.size
        if _orientation(image) != 1:
            raise DatasetError(f"{path}: its EXIF tag rotates it; rotate the file's own pixels")
    return height, width


def is_turned(data: bytes) -> bool:
    """Whether an image's EXIF tag rotates it by 90 degrees."""
    try:
        with _opened(data, "image") as image:
            return _orientation(image) in (5, 6, 7, 8)
    except DatasetError:
        return False


def _orientation(image: Image.Image) -> object:
    """The EXIF orientation; 1 if there is none, or if the tags are damaged (no decoder needs them)."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1


def _opened(data: bytes, where: str) -> Image.Image:
    """The image with its header read; Pillow's pixel limit is replaced by `_check_size`."""
    from PIL import Image, UnidentifiedImageError

    with _limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=_formats(data))
        except UnidentifiedImageError:
            raise DatasetError(
                f"{where}: cannot be decoded as an image, unknown by its first bytes; if it should be one,"
                " download it again"
            ) from None
        except Exception as error:
            raise _undecodable(where, error) from None
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _formats(data: bytes) -> tuple[str, ...]:
    """Names of the Pillow readers to try; readers other than JPEG and PNG take 0.1 s to load."""
    from PIL import Image

    if is_jpeg(data) or data[:4] == _PNG:
        return ("JPEG",) if is_jpeg(data) else ("PNG",)
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _undecodable(where: str, error: Exception) -> DatasetError:
    """The error for an undecodable image; readers raise OSError, ValueError, SyntaxError and more."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DatasetError(f"{where}: cannot be decoded as an image ({reason:.200}); download it again")


def _check_size(size: tuple[int, int], where: str) -> None:
    given = os.environ.get(MAX_MEGAPIXELS, "")
    try:
        budget = float(given) if given else DEFAULT_MEGAPIXELS
    except ValueError:
        raise DatasetError(f"{MAX_MEGAPIXELS} is {given!r:.40}, expected a number of megapixels") from None
    width, height = size
    if not width * height <= 1e6 * budget:
        raise DatasetError(
            f"{where}: the image has {width}x{height} pixels, {width * height / 1e6:.0f} megapixels, the"
            f" budget is {budget:g}; make it smaller or cut it into tiles, or set {MAX_MEGAPIXELS}"
        )


def _decode_pil(image: Image.Image, where: str) -> np.ndarray:
    try:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if image.mode in ("I", "F"):
            raise DatasetError(
                f"{where}: grey values of 32 bits have no range that could be scaled; write 8 or 16 bits"
            )
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except DatasetError:
        raise
    except Exception as error:
        raise _undecodable(where, error) from None


def _decode_cv2(data: bytes, where: str) -> np.ndarray:
    import cv2

    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise _undecodable(where, error) from None
    if image is None:
        raise DatasetError(f"{where}: cannot be decoded as an image; download it again")
    return np.ascontiguousarray(image[:, :, ::-1])
