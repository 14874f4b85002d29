"""BT.2020, HLG and PQ video as ordinary BT.709 pixels.

Phones record HDR: BT.2020 primaries, and the transfer function HLG or PQ in place of gamma. Read as BT.709, such a clip
looks grey and washed out. Here its light is computed, its highlights are compressed, and the rest keeps its look.
Sources: ITU-R BT.2100 (HLG, PQ), BT.2087 (primaries), BT.2408 (reference white, 203 cd/m²). FFmpeg's zscale filter does
the same, but PyAV's FFmpeg is built without it.
"""

import numpy as np

PQ, HLG = 16, 18  # transfer characteristics, and
BT2020 = 9  # primaries and matrix, as numbered in ITU-T H.273
WHITE = 203.0  # cd/m² of reference white: a sheet of paper, not a lamp
PEAK = 1000.0  # cd/m² that become 255, the peak that HLG is defined for
KNEE = 0.7  # of reference white: darker light is not compressed, so that reference white becomes 239
BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)


def name(transfer: int) -> str:
    """What `to_bt709` does, in words."""
    hdr = {HLG: "HDR (HLG)", PQ: "HDR (PQ)"}.get(transfer)
    return f"{hdr} tone-mapped to BT.709" if hdr else "BT.2020 converted to BT.709"


def is_wide(primaries: int, transfer: int) -> bool:
    """Whether `to_bt709` is needed for such a video."""
    return primaries == BT2020 or transfer in (PQ, HLG)


def yuv_to_rgb(yuv: np.ndarray, full_range: bool) -> np.ndarray:
    """uint16 Y'CbCr [..., 3] of BT.2020 -> R'G'B' float32, 0 … 1 and a little beyond."""
    yuv = yuv.astype(np.float32)
    if full_range:
        luma, chroma = yuv[..., 0] / 65535, (yuv[..., 1:] - 32768) / 65535
    else:
        luma, chroma = (yuv[..., 0] / 256 - 16) / 219, (yuv[..., 1:] / 256 - 128) / 224
    blue, red = chroma[..., 0], chroma[..., 1]
    return np.stack([luma + 1.4746 * red, luma - 0.16455 * blue - 0.57135 * red, luma + 1.8814 * blue], -1)


def to_bt709(rgb: np.ndarray, primaries: int, transfer: int) -> np.ndarray:
    """R'G'B' float32 [..., 3] of a wide-gamut or HDR video -> BT.709 pixels float32, 0 … 255."""
    rgb = rgb.clip(0, 1)
    if transfer == PQ:
        light = _pq(rgb) / WHITE
    elif transfer == HLG:
        light = _hlg(rgb) / WHITE
    else:
        light = rgb**2.4
    if primaries == BT2020:
        light = (light @ BT2020_TO_BT709.T).clip(0)
    if transfer in (PQ, HLG):
        brightest = light.max(-1, keepdims=True)  # all three are scaled alike, which keeps the hue
        light = light * (_compressed(brightest) / np.maximum(brightest, 1e-6))
    return 255 * light.clip(0, 1) ** (1 / 2.4)  # BT.1886, the gamma of a screen


def _pq(signal: np.ndarray) -> np.ndarray:
    """The PQ EOTF: cd/m²."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg(signal: np.ndarray) -> np.ndarray:
    """The HLG EOTF (inverse OETF, then OOTF) for a display of PEAK: cd/m²."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593], np.float32)
    return PEAK * scene * luminance[..., None] ** 0.2


def _compressed(light: np.ndarray) -> np.ndarray:
    """Light of 0 … PEAK / WHITE as 0 … 1: the identity below KNEE, and a smooth curve above ("mobius" in FFmpeg)."""
    peak = PEAK / WHITE
    a = -(KNEE**2) * (peak - 1) / (KNEE**2 - 2 * KNEE + peak)
    b = (KNEE**2 - 2 * KNEE * peak + peak) / (peak - 1)
    curve = (b**2 + 2 * b * KNEE + KNEE**2) / (b - a) * (light + a) / (light + b)
    return np.where(light <= KNEE, light, np.minimum(curve, 1))
