"""Letters of every script in pictures, by the fonts that this machine has."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib import font_manager


@contextmanager
def drawn(texts: Iterable[str]) -> Iterator[None]:
    """Inside, matplotlib takes the letters of `texts` that its own font lacks from others. Those
    that no font has are boxes, of which it does not warn: the picture is made all the same."""
    with matplotlib.rc_context({"font.family": fonts_for(texts)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def fonts_for(texts: Iterable[str]) -> list[str]:
    """The font families that have the letters of `texts`, as far as there are any; first those in
    use. Others are looked at only where they are needed: that may be hundreds of files."""
    families = [*matplotlib.rcParams["font.family"]]
    missing = {letter for text in texts for letter in text if letter.isprintable()}
    missing -= letters_of(families)
    # "Last Resort" has a box for every letter: matplotlib takes it by itself.
    names = (font.name for font in font_manager.fontManager.ttflist)
    for name in dict.fromkeys(name for name in names if not name.startswith("Last Resort")):
        if not missing:
            break
        if found := missing & letters_of([name]):
            families.append(name)
            missing -= found
    return families


def letters_of(families: list[str]) -> set[str]:
    """What the font can draw that matplotlib takes for these families; nothing where it is gone."""
    try:
        font = font_manager.get_font(
            font_manager.findfont(font_manager.FontProperties(family=families))
        )
        return set(map(chr, font.get_charmap()))
    except (OSError, RuntimeError, ValueError):  # matplotlib lists fonts as they once were
        return set()
