"""One patient's anatomy: numbers drawn from a seed, and the curves and surfaces that follow from them.

The patient frame is millimetres of a reference adult with the tracheal bifurcation near z = 0; body size is a scale of
the whole frame, so positions below read like an atlas. Positions are (x, y, z): left, posterior, superior.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from voco.phantom.anatomy.shapes import Points, smooth_max
from voco.phantom.anatomy.tissue import PHASES, draw_tissue

# Inner chest wall by level: half-width, front and back, read off a textbook adult chest.
_LEVEL = np.array([-420, -330, -260, -200, -150, -100, -50, 0, 40, 60, 80, 90, 97, 103, 140], float)
_HALF = np.array([122, 124, 128, 133, 137, 138, 134, 124, 107, 91, 67, 52, 36, 20, 14], float)
_FRONT = np.array([-84, -88, -93, -95, -94, -91, -83, -67, -46, -30, -9, 2, 14, 24, 26], float)
_BACK = np.array([62, 70, 82, 91, 97, 102, 103, 99, 90, 83, 73, 67, 60, 50, 46], float)

VERTEBRAE = (
    # name, centre of the body in z
    ("C5", 132), ("C6", 115), ("C7", 97), ("T1", 79), ("T2", 59), ("T3", 38), ("T4", 17), ("T5", -5), ("T6", -29),
    ("T7", -54), ("T8", -79), ("T9", -105), ("T10", -132), ("T11", -160), ("T12", -190), ("L1", -222), ("L2", -255),
    ("L3", -289), ("L4", -324), ("L5", -359),
)  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """What makes one patient different from the next; lengths in mm, angles in radians, factors without unit."""

    sex: str
    phase: str
    arms: str
    scale_zyx: tuple[float, float, float]
    fat_mm: float
    visceral_fat: float
    muscle: float
    breast_mm: float
    gland: float
    barrel: float
    kyphosis: float
    scoliosis_mm: float
    scoliosis_phase: float
    bone_density: float
    right_dome_z: float
    left_dome_z: float
    dome_depth: float
    heart_scale: float
    heart_tilt: float
    heart_shift: tuple[float, float, float]
    aorta_scale: float
    arch_shift: float
    pulmonary_scale: float
    emphysema: float
    gravity_hu: float
    liver_scale: float
    liver_left: float
    spleen_scale: float
    kidney_scale: float
    kidney_drop: float
    stomach_fill: float
    stomach_gas: float
    colon_gas: float
    hu: dict[str, float]
    seed: int

    def stream(self, *part: str) -> np.random.Generator:
        """Random numbers for one part: they do not depend on which other parts were drawn, or in which order."""
        from voco.rng import derive_seed

        return np.random.default_rng(derive_seed(self.seed, *part))

    def as_dict(self) -> dict:
        """All parameters, ready for JSON."""
        return asdict(self)

    @property
    def heart_size(self) -> float:
        """Scale of the heart against the lengths in ``heart.py``."""
        return 1.1 * self.heart_scale

    def width_mm(self) -> float:
        """Width of the trunk at mid-chest, skin to skin."""
        return 2 * self.scale_zyx[2] * (134 + 12 + 13 * self.muscle + 6.5 + 0.9 * self.fat_mm)

    def spine(self, z) -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of the vertebral bodies' centres at level z: kyphosis, lumbar lordosis, and a little scoliosis."""
        z = np.asarray(z, float)
        upper, lower = np.maximum(z + 60, 0) / 140, np.maximum(-60 - z, 0) / 200
        y = 63 - self.kyphosis * (25 * upper**1.8 + 24 * lower**1.8)
        return self.scoliosis_mm * np.sin(z / 110 + self.scoliosis_phase), y

    def cage(self, z) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inner chest wall at level z: half-width, front y and back y."""
        half, front, back = (np.interp(z, _LEVEL, profile) for profile in (_HALF, _FRONT, _BACK))
        middle, depth = 0.5 * (front + back), 0.5 * (back - front)
        return half, middle - depth * self.barrel, middle + depth * (0.5 + 0.5 * self.barrel)

    def cage_distance(self, p: Points) -> np.ndarray:
        """Signed distance to the inner chest (and abdominal) wall."""
        half, front, back = (np.asarray(v, np.float32) for v in self.cage(p.z))
        middle, depth = 0.5 * (front + back), 0.5 * (back - front)
        u = np.abs(p.x - self.midline(p.z)) / half
        v = np.abs(p.y - middle) / depth
        power = np.float32(2.35)
        rho = np.maximum((u**power + v**power) ** (1 / power), 1e-4)
        slope = np.sqrt(((u / rho) ** (power - 1) / half) ** 2 + ((v / rho) ** (power - 1) / depth) ** 2)
        wall = (rho - 1) / np.maximum(slope, 1e-4)
        return smooth_max(wall, (p.z - 99) * np.float32(0.8), 14.0).astype(np.float32)

    def midline(self, z) -> np.ndarray:
        """x of the middle of the cage: it follows half of the spine's bend."""
        return (0.5 * self.spine(z)[0]).astype(np.float32)

    def cage_angle(self, p: Points) -> np.ndarray:
        """Angle around the trunk: 0 in front, +-pi at the back, positive on the left."""
        half, front, back = self.cage(p.z)
        return np.arctan2(p.x / half, -(p.y - 0.5 * (front + back)) / (0.5 * (back - front))).astype(np.float32)

    def cage_point(self, angle: float, z: float, outward_mm: float) -> np.ndarray:
        """(x, y, z) on the chest wall at an angle, moved outward."""
        half, front, back = self.cage(z)
        middle, depth = 0.5 * (front + back), 0.5 * (back - front)
        s, c = np.sin(angle), np.cos(angle)
        radius = (abs(s) ** 2.35 + abs(c) ** 2.35) ** (-1 / 2.35)
        x, y = half * radius * s, -depth * radius * c
        normal = np.array([np.sign(s) * (abs(x) / half) ** 1.35 / half, np.sign(y) * (abs(y) / depth) ** 1.35 / depth])
        normal *= outward_mm / np.linalg.norm(normal)
        return np.array([x + normal[0] + float(self.midline(z)), y + normal[1] + middle, z])

    def dome(self, p: Points) -> np.ndarray:
        """z of the diaphragm over (x, y): two domes with the saddle under the heart, deep gutters at back and sides."""
        drop = self.dome_depth
        y = p.y - 4
        outward_r = np.sqrt(((p.x + 64) / 74) ** 2 + (y / 97) ** 2)
        outward_l = np.sqrt(((p.x - 66) / 72) ** 2 + (y / 97) ** 2)
        tilt = np.where(y > 0, 0.32, 0.12) * np.abs(y)
        right = self.right_dome_z - 62 * drop * outward_r**2.3 - drop * tilt
        left = self.left_dome_z - 62 * drop * outward_l**2.1 - drop * tilt
        # The central tendon carries the heart.
        base = -72 + self.heart_shift[2] - 40 * self.heart_size
        saddle = base - 0.10 * y - 0.004 * np.abs(p.x - 12) ** 2.2
        right, left, saddle = (v.astype(np.float32) for v in (right, left, saddle))
        return smooth_max(smooth_max(right, left, 10.0), saddle, 14.0)


def draw_anatomy(seed: int) -> Anatomy:
    """Draw a patient.

    Args:
        seed: from ``voco.rng.derive_seed``; nothing else decides the anatomy.
    """
    rng = np.random.default_rng(seed)

    def spread(mean: float, sigma: float, low: float, high: float) -> float:
        return float(np.clip(rng.normal(mean, sigma), low, high))

    sex = "F" if rng.random() < 0.48 else "M"
    phase = PHASES[rng.choice(4, p=[0.32, 0.22, 0.18, 0.28])]
    body = spread(0.955 if sex == "F" else 1.02, 0.045, 0.85, 1.13)
    fat = spread(15 if sex == "F" else 12, 7, 4, 34)
    dome = spread(-119, 9, -140, -99)
    return Anatomy(
        sex=sex,
        phase=phase,
        arms="up" if rng.random() < 0.85 else "down",
        scale_zyx=(
            body * spread(1, 0.03, 0.93, 1.07),
            body * spread(1, 0.04, 0.9, 1.1),
            body * spread(1, 0.04, 0.9, 1.1),
        ),
        fat_mm=fat,
        visceral_fat=float(np.clip(fat / 14 * rng.uniform(0.7, 1.3), 0.3, 2)),
        muscle=spread(0.9 if sex == "F" else 1.05, 0.14, 0.65, 1.35),
        breast_mm=spread(26, 10, 8, 50) if sex == "F" else spread(3, 2, 0, 8),
        gland=rng.uniform(0.2, 1.0) if sex == "F" else 0.0,
        barrel=spread(1.0, 0.06, 0.88, 1.16),
        kyphosis=spread(1.0, 0.18, 0.55, 1.5),
        scoliosis_mm=float(abs(rng.normal(0, 4.0))) if rng.random() < 0.6 else 0.0,
        scoliosis_phase=rng.uniform(0, 2 * np.pi),
        bone_density=spread(1.0, 0.2, 0.55, 1.4),
        right_dome_z=dome,
        left_dome_z=dome - spread(11, 5, 0, 22),
        dome_depth=spread(1.0, 0.16, 0.65, 1.3),
        heart_scale=spread(1.0, 0.075, 0.85, 1.2),
        heart_tilt=spread(0.0, 0.1, -0.22, 0.22),
        heart_shift=(spread(0, 4, -8, 8), spread(0, 3, -6, 6), 0.6 * (dome + 119) + spread(0, 3, -6, 6)),
        aorta_scale=spread(1.0, 0.1, 0.8, 1.35),
        arch_shift=spread(0, 4, -8, 8),
        pulmonary_scale=spread(1.0, 0.09, 0.82, 1.25),
        emphysema=float(np.clip(rng.exponential(0.25), 0, 1)),
        gravity_hu=rng.uniform(25, 75),
        liver_scale=spread(1.0, 0.1, 0.78, 1.25),
        liver_left=rng.uniform(20, 62),
        spleen_scale=spread(1.0, 0.13, 0.75, 1.4),
        kidney_scale=spread(1.0, 0.08, 0.82, 1.18),
        kidney_drop=spread(0, 8, -15, 15),
        stomach_fill=rng.uniform(0.7, 1.2),
        stomach_gas=rng.uniform(0.15, 0.75),
        colon_gas=rng.uniform(0.1, 0.9),
        hu=draw_tissue(rng, phase),
        seed=seed,
    )
