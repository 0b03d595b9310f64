"""An agent that works on photographs with Pillow: ``spinal agent run worker.py``.

Photographs come from strangers.  So only formats that Pillow decodes itself are opened (it hands
EPS to Ghostscript), a picture is judged by its header before it is decoded, and what cannot be
done is refused in one line.
"""

import io
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Final, TypedDict

from msgspec import Meta
from PIL import Image, ImageOps, UnidentifiedImageError

from spinal.agents import Agent, Blob, Refused

agent = Agent("images")

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")

#: Most pixels of a picture, before and after: 150 MB in RGB.  Pillow warns above its own limit.
MAX_PIXELS: Final = 50_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

#: How often each picture is computed.  ``spinal demo`` makes one machine look like several of
#: different speeds; a worker with more to do for the same picture is slower in earnest.
TIMES: Final = int(os.environ.get("SPINAL_DEMO_SLOWER", "1"))


class Histogram(TypedDict):
    """What a photograph is made of."""

    width: int
    height: int
    #: Pixels by brightness of each colour, from dark to bright.
    red: list[int]
    green: list[int]
    blue: list[int]


@agent.op("/image/resize", effects="reads")
def resize(photo: Blob, width: Annotated[int, Meta(ge=16, le=8192)] = 640) -> Blob:
    """Scale a photograph to a width; the height follows.

    Args:
        photo: JPEG, PNG, WebP, GIF, TIFF or BMP.
        width: pixels.
    """
    with opened(photo) as image:
        height = max(1, round(image.height * width / image.width))
        return scaled(image, width, height)


@agent.op("/image/thumbnail", effects="reads")
def thumbnail(photo: Blob, size: Annotated[int, Meta(ge=16, le=1024)] = 160) -> Blob:
    """Scale a photograph down until it fits into a square; a smaller one keeps its size.

    Args:
        photo: JPEG, PNG, WebP, GIF, TIFF or BMP.
        size: pixels of the square's side.
    """
    with opened(photo) as image:
        share = min(1.0, size / max(image.size))
        return scaled(image, *(max(1, round(side * share)) for side in image.size))


@agent.op("/image/histogram", effects="reads")
def histogram(photo: Blob, bins: Annotated[int, Meta(ge=1, le=256)] = 16) -> Histogram:
    """Count a photograph's pixels by the brightness of each colour.

    Args:
        photo: JPEG, PNG, WebP, GIF, TIFF or BMP.
        bins: steps from dark to bright.
    """
    with opened(photo) as image:
        counts = image.convert("RGB").histogram()
        sums = [[0] * bins for _ in range(3)]
        for index, count in enumerate(counts):
            sums[index // 256][index % 256 * bins // 256] += count
        red, green, blue = sums
        return Histogram(width=image.width, height=image.height, red=red, green=green, blue=blue)


@contextmanager
def opened(photo: Blob) -> Generator[Image.Image, None, None]:
    """Decode a photograph and turn it upright; one that cannot be decoded is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(photo.data), formats=FORMATS)
    except UnidentifiedImageError as exc:
        raise Refused(f"photo: not an image Pillow can read (try {', '.join(FORMATS)})") from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise Refused(f"photo: more than {MAX_PIXELS:,} pixels: send a smaller one") from exc
    with image:
        try:
            upright = ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, EOFError) as exc:
            # What the decoders raise for a file that is cut off or damaged.
            raise Refused(f"photo: the image is damaged: {exc}") from exc
        upright.format = image.format
        yield upright


def scaled(image: Image.Image, width: int, height: int) -> Blob:
    """Scale and encode: JPEG and WebP stay what they are, the rest becomes PNG."""
    if width * height > MAX_PIXELS:
        raise Refused(f"{width} x {height} is more than {MAX_PIXELS:,} pixels: ask for less width")
    kind = image.format if image.format in ("JPEG", "WEBP") else "PNG"
    if image.mode not in ("L", "RGB", "RGBA"):
        # Palettes and black-and-white cannot be blended; CMYK and 16 bits few programs show.
        clear = image.mode in ("LA", "PA") or "transparency" in image.info
        image = image.convert("RGBA" if clear else "RGB")
    out = io.BytesIO()
    for _ in range(TIMES):
        out.seek(0)  # Where the same bytes are.
        small = image.resize((width, height), Image.Resampling.LANCZOS)  # pyright: ignore[reportUnknownMemberType] - numpy's
        small.save(out, kind)
    return Blob.of(out.getvalue(), Image.MIME[kind])
