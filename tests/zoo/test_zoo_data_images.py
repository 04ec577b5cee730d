"""Image and XML files that are large, odd, cut short or hostile: read as OpenCV reads them, or one error with the
file's name before anything large is allocated."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.data.images import MAX_MEGAPIXELS, decode_image
from detection_zoo.zoo.data.voc import read_voc_xml
from detection_zoo.zoo.errors import DatasetError

DECODERS = ("pil", "cv2")
RANDOM = np.random.default_rng(0)
PIXELS = cv2.resize(RANDOM.integers(0, 256, (6, 8, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    data = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(data, kind, **options)
    return data.getvalue()


def png(width: int, height: int) -> bytes:
    """A black picture of which the file has a hundred rows of 3,000 pixels at the most."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes((1 + 3 * min(width, 3000)) * min(height, 100)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_grey_of_sixteen_bits_is_scaled_as_opencv_does(decoder: str, suffix: str) -> None:
    grey = RANDOM.integers(0, 65536, (30, 40)).astype(np.uint16)
    grey[0, :4] = [0, 255, 256, 65535]
    data = cv2.imencode(suffix, grey)[1].tobytes()
    found = decode_image(data, f"x{suffix}", decoder)
    np.testing.assert_array_equal(found, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    assert found[0, :4, 0].tolist() == [0, 0, 1, 255] and found.shape == (30, 40, 3)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_grey_of_thirty_two_bits_is_refused(decoder: str, kind: type) -> None:
    with pytest.raises(DatasetError, match=r"^x\.tiff: "):
        decode_image(encoded("TIFF", Image.fromarray(np.ones((5, 6), kind) * 1000)), "x.tiff", decoder)


@pytest.mark.parametrize("decoder", DECODERS)
def test_pixels_have_a_budget_before_decoding(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.process_time()
    for width, height in ((14000, 14000), (9500, 9500), (2**31 - 1, 1)):
        with pytest.raises(
            DatasetError, match=rf"^big\.png: .*{width}x{height} pixels.*budget is 64.*tiles, or set"
        ):
            decode_image(png(width, height), "big.png", decoder)
    assert time.process_time() - begun < 2
    monkeypatch.setenv(MAX_MEGAPIXELS, "0.05")
    with pytest.raises(DatasetError, match="320x240 pixels, 0 megapixels, the budget is 0.05"):
        decode_image(encoded("PNG"), "x.png", decoder)
    monkeypatch.setenv(MAX_MEGAPIXELS, "0.08")
    assert decode_image(encoded("PNG"), "x.png", decoder).shape == (240, 320, 3)
    monkeypatch.setenv(MAX_MEGAPIXELS, "many")
    with pytest.raises(DatasetError, match="DETECTION_ZOO_MAX_MEGAPIXELS is 'many', expected a number"):
        decode_image(encoded("PNG"), "x.png", decoder)


def test_a_larger_budget_reads_beyond_pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode_image(encoded("PNG"), "x.png").shape == (240, 320, 3) and Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("progressive", [False, True])
def test_bytes_after_the_end_of_a_jpeg_are_no_damage(decoder: str, progressive: bool) -> None:
    data = encoded("JPEG", progressive=progressive)
    for tail in (b"\0" * 500, b"text", b"\xff\xda" + b"scan", encoded("JPEG")[:300]):
        np.testing.assert_array_equal(
            decode_image(data + tail, "x", decoder), decode_image(data, "x", decoder)
        )


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_progressive_jpeg_cut_short_is_refused_even_with_an_end_marker(decoder: str, share: float) -> None:
    data = encoded("JPEG", progressive=True)
    part = data[: int(share * len(data))]
    for cut in (part, part + b"\xff\xd9", part + b"\xff\xd9" + b"tail"):
        with pytest.raises(DatasetError, match=r"^cut\.jpg: the JPEG file is cut short"):
            decode_image(cut, "cut.jpg", decoder)


@pytest.mark.parametrize("decoder", DECODERS)
def test_files_that_cost_more_than_they_look(decoder: str) -> None:
    jpeg = encoded("JPEG")
    scans = jpeg[:-2] + jpeg[jpeg.index(b"\xff\xda") : -2] * 300 + b"\xff\xd9"
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n"
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0\0\0\0\xff\xff\xff;"
    huge = jpeg.replace(struct.pack(">HH", 240, 320), struct.pack(">HH", 65500, 65500))
    for data, said in (
        (scans, "more than 256 scans"),
        (postscript, "unknown by its first bytes"),
        (gif, "megapixels|cannot be decoded"),
        (huge, "megapixels"),
        (png(40, 30)[:-9], "cut short"),
        (jpeg[:100] + b"\xff\xd9", "cut short"),
    ):
        with pytest.raises(DatasetError, match=rf"^x\.jpg: .*({said})"):
            decode_image(data, "x.jpg", decoder)


def test_an_image_that_opencv_refuses_is_one_error() -> None:
    """Wider than OpenCV takes, and within the budget of pixels: its own exception does not pass."""
    wide = encoded("PPM", Image.new("L", (1_100_000, 1)))
    assert decode_image(wide, "x.ppm", "pil").shape == (1, 1_100_000, 3)
    with pytest.raises(DatasetError, match=r"^x\.ppm: cannot be decoded as an image \("):
        decode_image(wide, "x.ppm", "cv2")


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_pixels_that_pillow_cannot_decode_are_one_error(kind: str) -> None:
    """The header is whole, what follows is not: whatever Pillow raises, the file is named."""
    data = bytearray(encoded(kind, Image.fromarray(RANDOM.integers(0, 256, (40, 50, 3), np.uint8))))
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    with pytest.raises(DatasetError, match=r"^x: "):
        decode_image(bytes(data), "x", "pil")


def test_damaged_files_are_read_or_refused() -> None:
    """Whatever one byte is changed to, nothing but DatasetError comes out."""
    for kind in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF"):
        data = encoded(kind, Image.fromarray(PIXELS[:40, :50]))
        for _ in range(60):
            damaged = bytearray(data)
            for place in RANDOM.integers(0, len(data), 3):
                damaged[place] = RANDOM.integers(0, 256)
            for decoder in DECODERS:
                try:
                    assert decode_image(bytes(damaged), "x", decoder).dtype == np.uint8
                except DatasetError as error:
                    assert str(error).startswith("x: ") and "\n" not in str(error)


def test_a_turned_picture_says_what_turns_it(tmp_path: Path) -> None:
    """The row's decoder decides: Pillow keeps the stored orientation; the error names the tag."""
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", image, exif=exif))
    (tmp_path / "t.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg", "height": 320, "width": 240}], "categories": [{"id": 1,'
        ' "name": "a"}], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}]}'
    )
    with pytest.raises(DatasetError, match="is 320x240 pixels .*240x320; its EXIF tag rotates it"):
        CocoDataset(tmp_path, tmp_path / "t.json").load_image(0)
    assert CocoDataset(tmp_path, tmp_path / "t.json", decoder="cv2").load_image(0).shape == (320, 240, 3)


XML = (
    "<annotation>{}<size><width>30</width><height>20</height></size><object><name>{}</name><difficult>0</difficult>"
    "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>12</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("gb2312", "狗"), ("gbk", "獒犬"), ("gb18030", "狗"), ("shift_jis", "犬"), ("euc-jp", "犬"), ("big5", "狗"),
     ("euc-kr", "개"), ("iso-8859-15", "bête€"), ("windows-1251", "собака"), ("utf-16", "狗"), ("utf-8", "狗")],
)  # fmt: skip
def test_xml_in_any_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + XML.format("", name)
    (tmp_path / "a.xml").write_text(text, encoding=encoding)
    assert read_voc_xml(tmp_path / "a.xml", [name]).objects[0].name == name


def test_a_file_of_gbk_that_says_gb2312(tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="gb2312"?>' + XML.format("", "獒")
    (tmp_path / "a.xml").write_text(text, encoding="gbk")
    assert read_voc_xml(tmp_path / "a.xml", ["獒"]).objects[0].name == "獒"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<?xml version="1.0" encoding="zlib_codec"?><a/>', "line 1: the encoding 'zlib_codec' is unknown"),
        ('<?xml version="1.0" encoding="punycode"?><a/>', "line 1: the encoding 'punycode' is unknown"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "line 1: the encoding 'klingon' is unknown"),
        ('<?xml version="1.0" encoding="utf-8"?>\n<a>\udcff</a>', "line 2: not in the encoding utf-8"),
        (
            "<!DOCTYPE l [<!ENTITY a 'x'>]><a>&a;</a>",
            "line 1: declares the entity 'a'; replace it with its text",
        ),
        ("<!DOCTYPE l [<!ENTITY a SYSTEM 'file:///etc/hosts'>]><a>&a;</a>", "declares the entity 'a'"),
        ("<a>" * 100_000 + "</a>" * 100_000, "nested deeper than 64"),
        ("<a>" + "<b/>" * 200_000 + "</a>", "more than 100,000"),
        (XML.format("", "dog").replace("30", "0"), "<size> is 0x20, expected the image's width"),
        (XML.format("", "dog").replace("30", "1e300"), "<size> is 1"),
    ],
    ids=["zlib", "punycode", "unknown", "bytes", "entity", "external", "deep", "many", "no width", "width"],
)
def test_xml_that_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.xml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError, match=rf"a\.xml: .*{said}"):
        read_voc_xml(tmp_path / "a.xml", ["dog"])


def test_a_million_character_references_take_linear_time(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        (tmp_path / "a.xml").write_text(XML.format("<x>" + "&#65;" * count + "</x>", "dog"))
        begun = time.process_time()
        read_voc_xml(tmp_path / "a.xml", ["dog"])
        return time.process_time() - begun

    seconds(1000)
    assert seconds(1_000_000) < 5 * 10 * max(seconds(100_000), 0.001)
