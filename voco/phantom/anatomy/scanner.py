"""The scan of a patient: position, field of view, spacing, storage, blur and noise. Anatomy stays as it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from voco.errors import InputError
from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Grid

MATRIX = 512
ORIENTATIONS = ("LPS", "RAS", "LAS", "RPI", "LPI")
PADDINGS = (-1024, -2048, -3024)


@dataclass(frozen=True)
class Scanner:
    """One acquisition; lengths in mm, angles in degrees.

    ``field_share`` is the side of the reconstructed square over the width of the body, ``top_mm`` and ``bottom_mm``
    the scanned range in the patient's frame, ``padding`` the stored value outside the circular field of view (or None).
    """

    kernel: str
    noise_hu: float
    blur_mm: float
    grain_mm: float
    field_share: float
    slice_mm: float
    top_mm: float
    bottom_mm: float
    shift_mm: tuple[float, float]
    roll_deg: float
    pitch_deg: float
    yaw_deg: float
    table_mm: float
    table_curve: float
    table_kind: int
    padding: int | None
    orientation: str
    data_type: str
    seed: int

    def as_dict(self) -> dict:
        """All settings, ready for JSON."""
        return asdict(self)


def draw_scanner(seed: int) -> Scanner:
    """Draw a scan's nuisance factors.

    Args:
        seed: from ``voco.rng.derive_seed``, another stream than the anatomy's.
    """
    rng = np.random.default_rng(seed)
    sharp = rng.random() < 0.35
    circle = rng.random() < 0.7
    return Scanner(
        kernel="sharp" if sharp else "soft",
        noise_hu=float(rng.uniform(28, 60) if sharp else rng.uniform(10, 26)),
        blur_mm=float(rng.uniform(0.35, 0.5) if sharp else rng.uniform(0.6, 0.95)),
        grain_mm=float(rng.uniform(0.5, 0.7) if sharp else rng.uniform(0.9, 1.4)),
        field_share=float(rng.uniform(0.99, 1.22)),
        slice_mm=float(rng.choice([1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0])),
        top_mm=float(rng.uniform(102, 132)),
        bottom_mm=float(rng.uniform(-290, -205)),
        shift_mm=(float(np.clip(rng.normal(0, 5), -12, 12)), float(np.clip(rng.normal(0, 5), -12, 12))),
        roll_deg=float(np.clip(rng.normal(0, 2.2), -6, 6)),
        pitch_deg=float(np.clip(rng.normal(0, 1.5), -4, 4)),
        yaw_deg=float(np.clip(rng.normal(0, 1.0), -3, 3)),
        table_mm=float(rng.uniform(2, 12)),
        table_curve=float(rng.uniform(420, 900)),
        table_kind=int(rng.integers(3)),
        padding=int(rng.choice(PADDINGS, p=[0.4, 0.35, 0.25])) if circle else None,
        orientation=str(rng.choice(ORIENTATIONS, p=[0.35, 0.25, 0.15, 0.1, 0.15])),
        data_type=str(rng.choice(["int16", "int16", "float32"])),
        seed=seed,
    )


def _turn(scanner: Scanner) -> np.ndarray:
    """Rotation, scanner (z, y, x) to patient (z, y, x)."""
    roll, pitch, yaw = np.deg2rad([scanner.roll_deg, scanner.pitch_deg, scanner.yaw_deg])
    c, s = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    about_z = np.array([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]])
    about_x = np.array([[c[1], -s[1], 0], [s[1], c[1], 0], [0, 0, 1]])
    about_y = np.array([[c[2], 0, -s[2]], [0, 1, 0], [s[2], 0, c[2]]])
    return about_z @ about_x @ about_y


def plan_grid(
    scanner: Scanner,
    anatomy: Anatomy,
    size: tuple[int, int, int] | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
) -> Grid:
    """The voxel grid of a scan.

    Args:
        scanner: nuisance factors.
        anatomy: its scale decides how much of the range is body.
        size: voxels (D, H, W). With ``size`` alone, spacing covers the drawn field of view and range; with
            ``spacing_mm`` alone, size does; with both, the grid is centred on the chest; with neither, the matrix is
            512 x 512 and slices are ``scanner.slice_mm`` apart.
        spacing_mm: (D, H, W).

    Raises:
        InputError: sizes under 4 voxels or spacings that are not positive.
    """
    for name, values, least in (("size", size, 4), ("spacing", spacing_mm, 1e-3)):
        if values is not None and (len(values) != 3 or min(values) < least):
            raise InputError(
                f"phantom {name} {tuple(values)} cannot be used: expected three numbers in the order D, H, W, "
                "at least 4 voxels and more than 0 mm."
            )
    scale_z = anatomy.scale_zyx[0]
    top, bottom = scanner.top_mm * scale_z, scanner.bottom_mm * scale_z
    field = scanner.field_share * anatomy.width_mm()
    if size is None:
        if spacing_mm is None:
            pixel = field / MATRIX
            spacing_mm = (scanner.slice_mm, pixel, pixel)
        size = tuple(max(4, round(extent / s)) for extent, s in zip((top - bottom, field, field), spacing_mm))
    elif spacing_mm is None:
        spacing_mm = ((top - bottom) / size[0], field / size[1], field / size[2])
    spacing = tuple(round(float(s), 6) for s in spacing_mm)
    middle = 0.5 * (top + bottom)
    body_y = 14.0  # the trunk's middle lies behind the frame's origin
    centre = np.array([0.0, -body_y + scanner.shift_mm[0], scanner.shift_mm[1]])
    half = 0.5 * (np.array(size) - 1) * spacing
    origin = np.array([middle, 0.0, 0.0]) - half
    to_patient = np.diag(1 / np.array(anatomy.scale_zyx)) @ _turn(scanner)
    return Grid(tuple(int(n) for n in size), spacing, origin, to_patient, centre)


def add_table(hu: np.ndarray, grid: Grid, scanner: Scanner, body_back_mm: float) -> np.ndarray:
    """Paint mattress and couch into room air behind the patient.

    Args:
        hu: (D, H, W) before the patient is painted; changed in place.
        grid: its grid.
        scanner: shape and height of the couch.
        body_back_mm: scanner y where the back lies.

    Returns:
        Where the couch is, (H, W) boolean; it is the same in every slice.
    """
    _, y, x = grid.scanner_axes()
    x = x[None, :] - scanner.shift_mm[1] * 0.3
    top = body_back_mm + scanner.table_mm - x**2 / (2 * scanner.table_curve)
    depth = y[:, None] - top
    edge = grid.spacing_mm[1]

    def slab(first: float, last: float) -> np.ndarray:
        inside = np.minimum(depth - first, last - depth)
        inside = np.minimum(inside, 212 - np.abs(x))
        # A shell thinner than a voxel keeps its mass, not its height.
        return np.clip(inside / edge + 0.5, 0, 1) * min(1.0, (last - first) / edge + 0.3)

    thick = (24.0, 34.0, 46.0)[scanner.table_kind]
    image = np.full(depth.shape, -1000.0)
    for first, last, value in (
        (-scanner.table_mm, 0.0, -925.0),
        (0.0, 2.2, -120.0 + 60 * scanner.table_kind),
        (2.2, thick, -955.0),
        (thick, thick + 2.5, -60.0),
    ):
        cover = slab(first, last)
        image += cover * (value - image)
    hu[:] = image.astype(np.float32)
    return image > -700


def acquire(hu: np.ndarray, grid: Grid, scanner: Scanner, anatomy: Anatomy, slices: int = 1) -> np.ndarray:
    """Turn the ideal image into a scan: average over the slice thickness, blur, correlated noise, field of view.

    Args:
        hu: (D * slices, H, W) ideal HU; its memory is used up.
        grid: the scan's grid, (D, H, W).
        scanner: kernel, dose, padding.
        anatomy: shoulders and width decide where noise is strongest.
        slices: thin slices per scan slice.

    Returns:
        int16 (D, H, W), padding outside the field of view as the scanner stores it.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng([scanner.seed, 1])
    depth, height, width = grid.size
    if slices > 1:
        hu = hu.reshape(depth, slices, height, width).mean(axis=1, dtype=np.float32)
    sigma = [scanner.blur_mm / grid.spacing_mm[1], scanner.blur_mm / grid.spacing_mm[2]]
    along = 0.25 / grid.spacing_mm[0]
    gaussian_filter(hu, (along if along > 0.15 else 0, *sigma), truncate=2.5, output=hu)
    hu += _noise(rng, grid, scanner, anatomy)
    np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu)
    scan = hu.astype(np.int16)
    if scanner.padding is not None:
        _, y, x = grid.scanner_axes()
        radius = 0.5 * min(height * grid.spacing_mm[1], width * grid.spacing_mm[2])
        outside = (y[:, None] ** 2 + x[None, :] ** 2) > radius**2
        scan[:, outside] = scanner.padding
    return scan


def _noise(rng: np.random.Generator, grid: Grid, scanner: Scanner, anatomy: Anatomy) -> np.ndarray:
    """Noise with the grain of the kernel, stronger in the middle and through the shoulders, where it also streaks."""
    from scipy.ndimage import gaussian_filter

    shape = grid.size
    dz, dy, dx = grid.spacing_mm
    coarse = rng.standard_normal(shape, dtype=np.float32)
    grain = (min(0.5 / dz, 0.5), scanner.grain_mm / dy, scanner.grain_mm / dx)
    gaussian_filter(coarse, [g if g > 0.2 else 0 for g in grain], truncate=2.5, output=coarse)
    if scanner.kernel == "sharp":  # an edge-enhancing kernel has little noise at low frequencies
        wide = (1.3 * grain[1] + 0.5, 1.3 * grain[2] + 0.5)
        for image in coarse:
            image -= np.float32(0.7) * gaussian_filter(image, wide, truncate=2.5)
    # Larger voxels average more photons; doses are set so that thick slices gain about this much.
    level = scanner.noise_hu * (1.0 / max(dz, 1.0)) ** 0.35 * min(1.0, (0.75 / dx) ** 0.5)
    probe = coarse[: max(1, min(16, shape[0]))]
    coarse *= np.float32(level / max(float(probe.std()), 1e-6))
    z, y, x = grid.scanner_axes()
    inner = 0.7 + 0.5 * np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * 95.0**2))
    z = z / anatomy.scale_zyx[0]
    shoulders = np.exp(-(((z - 88) / 28) ** 2))
    inner = inner.astype(np.float32)
    for image, share in zip(coarse, shoulders):
        image *= inner * np.float32(1 + 0.6 * share)
    rows = np.flatnonzero(shoulders > 0.05)
    if len(rows):
        streaks = rng.standard_normal((len(rows), *shape[1:]), dtype=np.float32)
        streaks = gaussian_filter(streaks, (0, 1.2 / dy, 22 / dx), truncate=2.0)
        streaks *= np.float32(0.9 * level / max(float(streaks.std()), 1e-6))
        coarse[rows] += streaks * shoulders[rows, None, None].astype(np.float32)
    return coarse
