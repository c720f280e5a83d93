"""Glyphs: every named Unicode character in the fonts shipped with Matplotlib, captioned by its
official name.

Real compositional captions ("LATIN SMALL LETTER E WITH ACUTE") without a download: rendered once,
in seconds, into the cache folder. Three held-out splits ask for ever more: another image of a known
character, a character never seen (its name combines known words), a font family never seen.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import PIL
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from steering.data import mix, uniform
from steering.errors import SteeringError
from steering.storage import cache_dir, file_sha256, sha256, write_atomically

SIZE = 32
FAMILIES = {
    "DejaVu Sans": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSans-BoldOblique",
    ),
    "DejaVu Sans Mono": (
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-Oblique",
        "DejaVuSansMono-BoldOblique",
    ),
    "DejaVu Serif": (
        "DejaVuSerif",
        "DejaVuSerif-Bold",
        "DejaVuSerif-Italic",
        "DejaVuSerif-BoldItalic",
    ),
    "STIX": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}
FONTS = [(family, font) for family, fonts in FAMILIES.items() for font in fonts]
HELD_OUT_FAMILY = "DejaVu Serif"
_SPLIT_SEED = 20250509  # the splits are part of the data set: no run's seed moves them
_RECIPE = 1  # counts changes of the drawing below


@dataclass(frozen=True)
class Glyphs:
    """All drawings, n of them, of m characters.

    Attributes:
        images: uint8, (n, 32, 32), white paper = 255.
        character: number of the character that is drawn, int64, (n,), in [0, m).
        font: number of the font in FONTS, int64, (n,).
        names: official Unicode name of each character, m strings.
        codepoints: int64, (m,), ascending.
    """

    images: np.ndarray
    character: np.ndarray
    font: np.ndarray
    names: list[str]
    codepoints: np.ndarray

    def fingerprint(self) -> str:
        """Hex digest of pictures and names."""
        return sha256(
            [self.images.tobytes(), self.character.tobytes(), self.font.tobytes(), *self.names]
        )


@dataclass(frozen=True)
class Splits:
    """Numbers of images, int64 arrays, disjoint.

    `train`; `images`: held-out images of characters that `train` shows in other fonts;
    `characters`: characters that `train` never shows; `fonts`: characters of `train` in a font
    family it never shows.
    """

    train: np.ndarray
    images: np.ndarray
    characters: np.ndarray
    fonts: np.ndarray


def load_glyphs() -> Glyphs:
    """The data set from the cache folder, drawn first if it is missing or damaged (checksums are
    verified)."""
    versions = f"{_RECIPE}-mpl{matplotlib.__version__}-pil{PIL.__version__}-ucd{unicodedata.unidata_version}"
    folder = cache_dir("glyphs") / versions
    record, arrays = folder / "glyphs.json", folder / "glyphs.npz"
    if not _intact(record, arrays):
        try:
            _save(_draw_all(), record, arrays)
        except OSError as error:
            raise SteeringError(
                f"glyphs: cannot be kept in {folder}: {error.strerror}; set STEERING_CACHE to a folder that can be written"
            ) from error
    meta = json.loads(record.read_text(encoding="utf-8"))
    with np.load(arrays, allow_pickle=False) as stored:
        return Glyphs(
            stored["images"],
            stored["character"],
            stored["font"],
            meta["names"],
            stored["codepoints"],
        )


def split(glyphs: Glyphs) -> Splits:
    """Divide the images; see `Splits`. One character in ten is held out, and one image of every
    second other one."""
    families = np.array([family for family, _ in FONTS])[glyphs.font]
    held_character = uniform(_SPLIT_SEED, 0, glyphs.codepoints) < 0.1  # (m,)
    unseen = held_character[glyphs.character]
    serif = families == HELD_OUT_FAMILY
    candidates = np.flatnonzero(~unseen & ~serif)
    held = _one_of_each(glyphs, candidates, uniform(_SPLIT_SEED, 1, glyphs.codepoints) < 0.5)
    train = np.setdiff1d(candidates, held)
    known = np.isin(glyphs.character, glyphs.character[train])
    return Splits(train, held, np.flatnonzero(unseen & ~serif), np.flatnonzero(serif & known))


def _one_of_each(glyphs: Glyphs, candidates: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """One pseudo-random candidate of each chosen character that has at least two."""
    drawn = glyphs.character[candidates]
    rank = mix(_SPLIT_SEED, 2, glyphs.codepoints[drawn], glyphs.font[candidates])
    order = np.lexsort((rank, drawn))
    first = np.ones(len(order), dtype=bool)
    first[1:] = drawn[order][1:] != drawn[order][:-1]
    several = np.bincount(drawn, minlength=len(glyphs.names)) >= 2
    pick = candidates[order[first]]
    return np.sort(pick[(chosen & several)[glyphs.character[pick]]])


def _font_file(font: str) -> Path:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    if not path.is_file():
        raise SteeringError(f"glyphs: Matplotlib's font {path} is missing; reinstall matplotlib")
    return path


def _draw_all() -> Glyphs:
    drawings = [
        (code, number, image) for number in range(len(FONTS)) for code, image in _draw_font(number)
    ]
    drawings.sort(key=lambda drawing: drawing[:2])
    codes = np.array([code for code, _, _ in drawings])
    codepoints, character = np.unique(codes, return_inverse=True)
    return Glyphs(
        images=np.stack([image for _, _, image in drawings]),
        character=character.astype(np.int64),
        font=np.array([number for _, number, _ in drawings], dtype=np.int64),
        names=[unicodedata.name(chr(code)) for code in codepoints],
        codepoints=codepoints.astype(np.int64),
    )


def _draw_font(number: int) -> Iterator[tuple[int, np.ndarray]]:
    """Every named, visible character of one font as (code point, uint8 (32, 32))."""
    path = _font_file(FONTS[number][1])
    # The basic engine draws one character as the font has it, wherever Pillow was built.
    font = ImageFont.truetype(str(path), 24, layout_engine=ImageFont.Layout.BASIC)
    for code in sorted(FT2Font(str(path)).get_charmap()):
        character = chr(code)
        if unicodedata.name(character, "") and (image := _draw(character, font)) is not None:
            yield code, image


def _draw(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray | None:
    """The character, centred across and standing on a common baseline, moved or shrunk when it
    would not fit.

    The baseline matters: it tells a comma from an apostrophe. None when no ink is left.
    """
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character, anchor="ls"))
    width, height = right - left, bottom - top
    if width <= 0 or height <= 0:
        return None
    side = max(width + 2, height + 2, SIZE)
    paper = Image.new("L", (side, side), 255)
    baseline = min(max(round(side * 0.72), 1 - top), side - 1 - bottom)
    ImageDraw.Draw(paper).text(
        ((side - width) / 2 - left, baseline), character, fill=0, font=font, anchor="ls"
    )
    if side != SIZE:
        paper = paper.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels = np.asarray(paper)
    return None if pixels.min() > 192 else pixels


def _save(glyphs: Glyphs, record: Path, arrays: Path) -> None:
    def write_arrays(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                images=glyphs.images,
                character=glyphs.character,
                font=glyphs.font,
                codepoints=glyphs.codepoints,
            )

    write_atomically(arrays, write_arrays)
    text = json.dumps({"sha256": file_sha256(arrays), "names": glyphs.names})
    write_atomically(record, lambda path: path.write_text(text, encoding="utf-8"))


def _intact(record: Path, arrays: Path) -> bool:
    try:
        return json.loads(record.read_text(encoding="utf-8"))["sha256"] == file_sha256(arrays)
    except (OSError, ValueError, KeyError, TypeError):
        return False
