"""How alike the map that a fusion generates is to the host's."""

from torch import Tensor
from torch.nn.functional import avg_pool2d


def structural_similarity(fused: Tensor, generated: Tensor) -> float:
    """SSIM of two maps (C, H, W), averaged over channels and positions; 1 for equal maps.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", TIP
    2004. Of every channel, not of one image made of them: a head sees the channels, and maps of the
    same energy may differ in all of them. A channel's range is that of `fused`; channels that are
    constant there do not count. Window (7×7, less on smaller maps), constants and sample
    covariances are scikit-image's defaults.

    Raises:
        ValueError: maps of different shapes, smaller than 3×3, or without a channel that varies.
    """
    if fused.shape != generated.shape or fused.ndim != 3 or min(fused.shape[1:]) < 3:
        raise ValueError(
            f"SSIM got maps of {tuple(fused.shape)} and {tuple(generated.shape)}; expected one "
            "shape (C, H, W) of at least 3×3 positions"
        )
    x, y = (maps.detach().cpu().double() for maps in (fused, generated))
    least, most = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    varying = (most > least).flatten()
    if not varying.any():
        raise ValueError(
            "SSIM got a fused map without a channel that varies; look at the host's inputs and "
            "weights"
        )
    x, y = (((maps - least) / (most - least))[varying] for maps in (x, y))
    side = min(7, *x.shape[1:])
    side -= 1 - side % 2
    mean_x, mean_y, xx, yy, xy = (
        avg_pool2d(v, side, stride=1) for v in (x, y, x * x, y * y, x * y)
    )
    sample = side**2 / (side**2 - 1)
    variances, covariance = (
        sample * (xx - mean_x**2 + yy - mean_y**2),
        sample * (xy - mean_x * mean_y),
    )
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return float((luminance * (2 * covariance + 0.03**2) / (variances + 0.03**2)).mean())
