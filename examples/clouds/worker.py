"""An agent that scales photographs with Pillow, one at a time, as machines of one processor do."""

import io
from typing import Annotated, Final

from msgspec import Meta
from PIL import Image, UnidentifiedImageError

from spinal.agents import Agent, Blob, Refused

agent = Agent("images", slots=1)

FORMATS: Final = ("JPEG", "PNG", "WEBP")


@agent.op("/image/resize", effects="reads")
def resize(photo: Blob, width: Annotated[int, Meta(ge=16, le=4096)] = 640) -> Blob:
    """Scale a photograph to a width, as a WebP that is as small as it gets.

    Args:
        photo: JPEG, PNG or WebP.
        width: pixels.
    """
    try:
        image = Image.open(io.BytesIO(photo.data), formats=FORMATS)
    except UnidentifiedImageError as exc:
        raise Refused(f"photo: not one of {', '.join(FORMATS)}") from exc
    with image:
        height = max(1, round(image.height * width / image.width))
        small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)  # pyright: ignore[reportUnknownMemberType] - numpy's
    out = io.BytesIO()
    small.save(out, "WEBP", quality=80, method=6)
    return Blob.of(out.getvalue(), "image/webp")


@agent.op("/image/formats", effects="reads")
def formats() -> list[str]:
    """Say which formats can be read; a machine that answers this has Pillow."""
    return list(FORMATS)
