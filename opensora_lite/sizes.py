"""Sizes and lengths by name: "240p 16:9", "480x832", "4s", "29.97".

Source of the table: opensora/datasets/aspect.py of hpcaitech/Open-Sora. It has the sizes of the buckets that the models
were trained on: about the same number of pixels for each ratio. 240p is anything with about 240 × 426 pixels.
"""

import math
import re
from fractions import Fraction

from opensora_lite.errors import SizeError, shown

PIXELS = {  # of one frame, by resolution
    "144p": 36864,
    "256": 65536,
    "240p": 102240,
    "360p": 230400,
    "512": 262144,
    "480p": 409920,
    "720p": 921600,
    "1024": 1048576,
    "1080p": 2073600,
    "2k": 3686400,
    "2048": 4194304,
    "2880": 8294400,
    "4k": 8294400,
}
RELEASED_FRAMES = {f"{2**k}x": 51 * 2**k for k in range(5)} | {f"{2 ** (k + 1)}s": 51 * 2**k for k in range(5)}
WIDE = Fraction(9, 16)  # height / width of a resolution without a ratio
MAX_RATIO = 16  # of the longer to the shorter side

_TABLE = """
h:w         144p      240p      360p      480p      720p     1080p        2k        4k
3:8      117x312   196x522   294x784  392x1046  588x1568  882x2352 1176x3136 1764x4704
9:21     125x291   210x490   314x732   420x980  628x1466  942x2198 1256x2930 1886x4400
12:25    133x277   222x462   332x692   444x925  666x1388  998x2080 1330x2770 1996x4158
1:2      135x270   226x452   340x680   452x904  678x1356 1018x2036 1358x2716 2036x4072
9:17     139x262   232x438   350x662   466x880  698x1318 1048x1980 1398x2640 2096x3960
27:50    141x260   236x436   352x652   470x870  706x1306 1058x1958 1412x2612 2118x3918
9:16     144x256   240x426   360x640   480x854  720x1280 1080x1920 1440x2560 2160x3840
5:8      151x241   252x404   380x608   506x810  758x1212 1138x1820 1518x2428 2276x3642
2:3      156x234   262x393   392x588   522x784  784x1176 1176x1764 1568x2352 2352x3528
3:4      166x221   276x368   416x554   554x738  832x1110 1248x1664 1662x2216 2494x3326
1:1      192x192   320x320   480x480   640x640   960x960 1440x1440 1920x1920 2880x2880
4:3      221x165   370x278   554x416   740x555  1108x832 1662x1246 2218x1664 3326x2494
3:2      235x156   392x262   588x392   784x522  1176x784 1764x1176 2352x1568 3528x2352
16:9     256x144   426x240   640x360   854x480  1280x720 1920x1080 2560x1440 3840x2160
17:9     263x139   440x232   660x350   880x466  1320x698 1980x1048 2638x1396 3958x2096
2:1      271x135   452x226   678x340   906x454  1358x680 2036x1018 2716x1358 4072x2036
50:27    277x132   462x222   692x332   924x444  1386x666  2078x998 2772x1330 4156x1994
"""


def _read_table(text: str) -> dict[tuple[str, Fraction], tuple[int, int]]:
    (_, *resolutions), *rows = (line.split() for line in text.strip().splitlines())
    sizes = {}
    for ratio, *cells in rows:
        for resolution, cell in zip(resolutions, cells, strict=True):
            height, width = map(int, cell.split("x"))
            sizes[resolution, Fraction(ratio.replace(":", "/"))] = height, width
    return sizes


BUCKETS = _read_table(_TABLE)  # (resolution, height / width) -> (height, width)
# The tables of "256", "512" … name their ratios in another way, so the release only finds this one in them.
BUCKETS |= {(f"{256 * n}", Fraction(12, 25)): (176 * n, 368 * n) for n in (1, 2, 4, 8)}


def size_by_name(resolution: str, ratio: Fraction | None = None) -> tuple[int, int]:
    """(height, width) of a resolution; ratio: height / width, None for 9/16, or 1 where the resolution is a number.

    As released where the table has the ratio; otherwise as many pixels in that ratio. Raises SizeError.

    >>> size_by_name("240p"), size_by_name("240p", Fraction(4, 3)), size_by_name("512")
    ((240, 426), (370, 278), (512, 512))
    """
    name = resolution.lower()
    if name not in PIXELS:
        raise SizeError(f"resolution {shown(resolution)} is unknown; known are {', '.join(PIXELS)}")
    if ratio is None:
        ratio = Fraction(1) if name.isdigit() else WIDE
    return BUCKETS.get((name, ratio)) or size_by_pixels(PIXELS[name], ratio)


def size_by_pixels(pixels: int, ratio: Fraction) -> tuple[int, int]:
    """(height, width), rounded down, of about that many pixels; ratio: height / width. Raises SizeError.

    >>> size_by_pixels(64 * 64, Fraction(9, 16))
    (48, 85)
    """
    if not 1 / MAX_RATIO <= ratio <= MAX_RATIO:
        raise SizeError(f"the longer side is more than {MAX_RATIO} times the shorter one")
    return math.isqrt(int(pixels * ratio)), math.isqrt(int(pixels / ratio))


def parse_size(text: str, pixels: int) -> tuple[int, int]:
    """(height, width) of text such as "480x832", "240p", "240p 16:9" or "16:9"; not rounded. Raises SizeError.

    480x832 is height and width, as everywhere in this library; 16:9 is width to height, as everywhere else.
    pixels: of one frame, where the text is a ratio only.

    >>> parse_size("240p 16:9", 0), parse_size("9:16", 64 * 64), parse_size("480x832", 0)
    ((240, 426), (85, 48), (480, 832))
    """
    if sides := re.fullmatch(r"\s*(\d{1,6})\s*[x×\s]\s*(\d{1,6})\s*", text, re.IGNORECASE):
        return int(sides[1]), int(sides[2])
    words = text.split()
    ratios = [ratio for word in words if (ratio := _ratio(word))]
    names = [word for word in words if not _ratio(word)]
    if not words or len(ratios) > 1 or len(names) > 1:
        raise SizeError(
            f'size {shown(text)} can\'t be read; write "480x832" (height, width), "240p", "240p 16:9" or "16:9"'
        )
    ratio = ratios[0] if ratios else None
    if names:
        return size_by_name(names[0], ratio)
    return size_by_pixels(pixels, ratios[0])


def _ratio(word: str) -> Fraction | None:
    """height / width of a ratio such as "16:9" (width to height)."""
    found = re.fullmatch(r"(\d{1,4}(?:\.\d{1,4})?):(\d{1,4}(?:\.\d{1,4})?)", word)
    if found is None or not float(found[1]) or not float(found[2]):
        return None
    return Fraction(found[2]) / Fraction(found[1])


def parse_frames(text: str, fps: float) -> int:
    """Frames of text such as "16", "4s" or "1.5s" (seconds, at least one frame). Raises SizeError.

    >>> parse_frames("4s", fps=8)
    32
    """
    seconds = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*s\s*", text, re.IGNORECASE)
    if seconds and float(seconds[1]):
        return max(round(float(seconds[1]) * fps), 1)
    if re.fullmatch(r"\s*\d{1,6}\s*", text):
        return int(text)
    raise SizeError(f'num_frames {shown(text)} can\'t be read; write a number of frames, or seconds such as "4s"')


def parse_released_frames(text: str) -> int:
    """Frames of a length as Open-Sora 1.2 names it: "2s" to "32s", "1x" to "16x" (51 frames each), or a number.

    The seconds are those of videos with 25.5 frames each; all lengths are multiples of 17. Raises SizeError.

    >>> parse_released_frames("4s"), parse_released_frames("1x"), parse_released_frames("17")
    (102, 51, 17)
    """
    name = text.strip()
    if name in RELEASED_FRAMES:
        return RELEASED_FRAMES[name]
    if re.fullmatch(r"[0-9]{1,6}", name) and int(name):
        return int(name)
    raise SizeError(f"num_frames {shown(text)} is unknown; write a number, or {', '.join(RELEASED_FRAMES)}")


def parse_rate(text: str) -> Fraction:
    """Frames per second of text such as "24", "29.97" or "30000/1001". Raises SizeError.

    >>> parse_rate("30000/1001"), parse_rate("29.97")
    (Fraction(30000, 1001), Fraction(2997, 100))
    """
    try:
        if len(text) > 20:
            raise ValueError
        return Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise SizeError(
            f'{shown(text)} is no frame rate; write frames per second such as "29.97" or "30000/1001"'
        ) from None
