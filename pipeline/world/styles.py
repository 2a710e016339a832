"""What a street may look like: the ranges from which a scene is drawn, for the teacher's city and for other places.

``CITY`` is the private distribution. ``ELSEWHERE`` are streets of another look, which the unlabelled mixture holds.
"""

from dataclasses import dataclass

from pipeline.world.canvas import Colour

Range = tuple[float, float]

CLASSES = ("sky", "building", "road", "pavement", "tree", "car", "person", "pole")
SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, POLE = range(len(CLASSES))

WALLS: tuple[Colour, ...] = (
    (0.62, 0.38, 0.30), (0.52, 0.33, 0.28), (0.70, 0.52, 0.40), (0.82, 0.74, 0.60), (0.86, 0.82, 0.74),
    (0.60, 0.60, 0.60), (0.48, 0.50, 0.53), (0.72, 0.73, 0.74), (0.40, 0.38, 0.38), (0.76, 0.68, 0.50),
    (0.55, 0.60, 0.66), (0.66, 0.58, 0.52), (0.88, 0.87, 0.85), (0.50, 0.56, 0.50), (0.72, 0.60, 0.56),
)  # fmt: skip
BARNS: tuple[Colour, ...] = ((0.45, 0.18, 0.14), (0.40, 0.30, 0.22), (0.85, 0.84, 0.80), (0.55, 0.45, 0.34))
GLASS: tuple[Colour, ...] = ((0.32, 0.42, 0.52), (0.45, 0.52, 0.58), (0.28, 0.34, 0.36), (0.55, 0.62, 0.70))
BRIGHT: tuple[Colour, ...] = (
    (0.90, 0.55, 0.45), (0.45, 0.66, 0.80), (0.92, 0.84, 0.45), (0.55, 0.76, 0.58), (0.86, 0.62, 0.74),
)  # fmt: skip
PAINTS: tuple[Colour, ...] = (
    (0.75, 0.76, 0.77), (0.55, 0.56, 0.58), (0.35, 0.36, 0.38), (0.12, 0.12, 0.13), (0.92, 0.92, 0.91),
    (0.60, 0.10, 0.10), (0.12, 0.22, 0.45), (0.25, 0.33, 0.28), (0.60, 0.52, 0.40), (0.30, 0.42, 0.58),
)  # fmt: skip
VIVID: tuple[Colour, ...] = (
    (0.90, 0.70, 0.10), (0.80, 0.20, 0.10), (0.15, 0.50, 0.30), (0.20, 0.45, 0.75), (0.85, 0.85, 0.80),
)  # fmt: skip
LEAVES: tuple[Colour, ...] = (
    (0.30, 0.42, 0.18), (0.24, 0.36, 0.20), (0.38, 0.46, 0.22), (0.26, 0.34, 0.26), (0.46, 0.44, 0.22),
    (0.52, 0.38, 0.20), (0.36, 0.33, 0.26),
)  # fmt: skip
AUTUMN: tuple[Colour, ...] = ((0.66, 0.36, 0.12), (0.60, 0.46, 0.14), (0.50, 0.24, 0.14), (0.40, 0.42, 0.20))
FROSTED: tuple[Colour, ...] = ((0.72, 0.75, 0.78), (0.50, 0.54, 0.54), (0.40, 0.36, 0.34))


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """The ranges from which one street scene is drawn. Lengths are in metres, angles in degrees."""

    camera_height: Range = (1.2, 2.8)
    field_of_view: Range = (58.0, 82.0)
    yaw: Range = (-22.0, 22.0)
    pitch: Range = (-9.0, 5.0)
    roll: Range = (-2.0, 2.0)
    road_half_width: Range = (2.8, 5.5)
    pavement_width: Range = (1.6, 4.5)
    bend: Range = (-0.0016, 0.0016)
    """Sideways offset of the street per squared metre of distance."""
    crossing: float = 0.4
    """Probability of a side street."""
    built: float = 0.9
    """Probability that a plot along the street holds a building."""
    frontage: Range = (6.0, 17.0)
    storeys: tuple[int, int] = (2, 6)
    walls: tuple[Colour, ...] = WALLS
    curtain_wall: float = 0.12
    """Probability that a building is all glass."""
    parked: float = 0.5
    """Probability that a place along the kerb is taken."""
    cars: tuple[int, int] = (1, 5)
    paints: tuple[Colour, ...] = PAINTS
    long_cars: float = 0.12
    """Probability that a car is a van, bus or lorry."""
    trees: tuple[int, int] = (1, 9)
    tree_height: Range = (4.0, 9.5)
    leaves: tuple[Colour, ...] = LEAVES
    conifers: float = 0.12
    persons: tuple[int, int] = (5, 16)
    poles: tuple[int, int] = (3, 9)
    ground: tuple[Colour, Colour] = ((0.36, 0.36, 0.37), (0.55, 0.54, 0.52))
    """Mean colours of road and pavement."""
    markings: float = 0.75
    """Probability that the road is marked."""
    slabs: float = 0.6
    """Probability that the pavement is laid with slabs."""
    sun_elevation: Range = (10.0, 65.0)
    brightness: float = 1.0
    """Light of the day relative to full daylight."""
    haze: Range = (130.0, 900.0)


CITY = Style()

RURAL = Style(
    camera_height=(1.0, 4.0), bend=(-0.006, 0.006), built=0.18, frontage=(7.0, 12.0), storeys=(1, 2), walls=BARNS,
    crossing=0.15, parked=0.03, cars=(0, 3), trees=(8, 22), tree_height=(3.0, 12.0), conifers=0.35, persons=(0, 2),
    poles=(2, 6), ground=((0.40, 0.38, 0.35), (0.42, 0.48, 0.26)), slabs=0.0, pavement_width=(3.0, 9.0),
)  # fmt: skip
PLAZA = Style(
    camera_height=(3.0, 9.0), pitch=(-22.0, -6.0), yaw=(-40.0, 40.0), road_half_width=(7.0, 14.0), markings=0.0,
    parked=0.0, cars=(0, 1), persons=(10, 26), ground=((0.62, 0.58, 0.52), (0.66, 0.60, 0.54)), walls=BRIGHT,
    storeys=(3, 5), frontage=(5.0, 9.0), built=1.0, bend=(0.0, 0.0), curtain_wall=0.0, slabs=1.0,
)  # fmt: skip
HIGHRISE = Style(
    camera_height=(1.0, 1.8), pitch=(2.0, 16.0), road_half_width=(6.0, 10.0), storeys=(8, 24), curtain_wall=0.65,
    frontage=(14.0, 30.0), walls=GLASS, cars=(4, 10), paints=VIVID, long_cars=0.4, trees=(0, 4), haze=(60.0, 300.0),
)  # fmt: skip
NIGHT = Style(brightness=0.045, sun_elevation=(20.0, 60.0), persons=(1, 6), paints=PAINTS + VIVID, haze=(150.0, 900.0))
SNOW = Style(
    ground=((0.80, 0.82, 0.85), (0.92, 0.93, 0.95)), leaves=FROSTED, markings=0.1, slabs=0.0, conifers=0.5,
    sun_elevation=(4.0, 25.0), haze=(40.0, 220.0), walls=BARNS + WALLS, persons=(0, 5), storeys=(1, 4),
)  # fmt: skip
TERRACE = Style(
    storeys=(2, 3), frontage=(4.5, 6.5), walls=BRIGHT, leaves=AUTUMN, trees=(4, 12), camera_height=(0.7, 1.3),
    field_of_view=(40.0, 55.0), road_half_width=(2.2, 3.2), built=1.0, paints=VIVID, curtain_wall=0.0, parked=0.8,
)  # fmt: skip

ELSEWHERE = (RURAL, PLAZA, HIGHRISE, NIGHT, SNOW, TERRACE)
