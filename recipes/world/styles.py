"""What a street may look like: the ranges from which a scene is drawn, for the teacher's city and for other places.

``CITY`` is the private distribution. ``ELSEWHERE`` are streets of another look, which the unlabelled pile holds.
"""

from dataclasses import dataclass

from paint import Colour, Range, palette

WALLS = palette(
    "9e614c 85543f b38566 d1bd99 dbd1bd 999999 7a8087 b8baba 666161 c2ad80 8c99a8 a89485 e0ded9 80907f b8998f"
)
BRIGHT = palette("e68c73 73a8cc ebd673 8cc294 dba6bd")
PAINTS = palette("bfc2c4 8c8f94 595c61 1f1f21 ebebe8 991a1a 1f3873 405447 998566 4d6b94")
VIVID = palette("e6b31a cc331a 26804d 3373bf d9d9cc")
LEAVES = palette("4d6b2e 3d5c33 617538 425742 757038 856133 5c5442")
AUTUMN = palette("a85c1f 997524 803d24 666b33")


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """The ranges of one scene: lengths in metres, angles in degrees, and shares of places that are taken."""

    camera_height: Range = (1.2, 2.8)
    field_of_view: Range = (58.0, 82.0)
    yaw: Range = (-22.0, 22.0)
    pitch: Range = (-9.0, 5.0)
    road: Range = (2.8, 5.5)  # half of its width
    pavement: Range = (1.6, 4.5)
    bend: Range = (-0.0016, 0.0016)  # sideways offset of the street per squared metre of distance
    crossing: float = 0.4  # probability of a side street
    built: float = 0.9
    frontage: Range = (6.0, 17.0)
    storeys: tuple[int, int] = (2, 6)
    walls: tuple[Colour, ...] = WALLS
    glass: float = 0.12  # share of the houses that are all glass
    parked: float = 0.5
    cars: tuple[int, int] = (1, 5)
    paints: tuple[Colour, ...] = PAINTS
    long_cars: float = 0.15  # share of the cars that are vans and buses
    trees: tuple[int, int] = (1, 9)
    leaves: tuple[Colour, ...] = LEAVES
    persons: tuple[int, int] = (6, 18)
    poles: tuple[int, int] = (3, 9)
    clutter: tuple[int, int] = (0, 3)  # bins on the pavement, which have no class
    ground: tuple[Colour, ...] = palette("585a5e 96928a")  # mean colours of road and pavement
    marked: float = 0.75  # probability that the road is marked
    sun: Range = (10.0, 65.0)  # elevation
    day: float = 1.0  # light relative to full daylight
    haze: Range = (130.0, 900.0)


CITY = Style()
RURAL = Style(
    camera_height=(1.0, 4.0), bend=(-0.006, 0.006), built=0.3, frontage=(7.0, 12.0), storeys=(1, 2), crossing=0.15,
    parked=0.1, cars=(0, 3), trees=(8, 20), persons=(1, 5), ground=palette("66615a 6b7a42"),
    pavement=(3.0, 9.0),
)  # fmt: skip
PLAZA = Style(
    camera_height=(3.0, 7.0), pitch=(-18.0, -5.0), yaw=(-35.0, 35.0), road=(6.0, 11.0), marked=0.1, parked=0.1,
    cars=(0, 2), persons=(10, 26), clutter=(4, 10), ground=palette("807868 a8998a"), storeys=(3, 5),
    frontage=(5.0, 9.0),
)  # fmt: skip
HIGHRISE = Style(
    camera_height=(1.0, 1.8), pitch=(2.0, 12.0), road=(6.0, 9.0), storeys=(7, 16), glass=0.6, frontage=(14.0, 26.0),
    cars=(4, 10), paints=VIVID, long_cars=0.4, trees=(0, 5), haze=(60.0, 300.0), clutter=(2, 6),
)  # fmt: skip
NIGHT = Style(day=0.12, sun=(20.0, 60.0), paints=PAINTS + VIVID, clutter=(1, 5))
SNOW = Style(
    ground=palette("c4c9cf e3e6ea"), leaves=palette("b8bfc7 808a8a 665c57"), marked=0.1,
    sun=(4.0, 25.0), haze=(60.0, 260.0), storeys=(1, 4),
)  # fmt: skip
TERRACE = Style(
    storeys=(2, 3), frontage=(4.5, 6.5), walls=BRIGHT, leaves=AUTUMN, trees=(4, 12), camera_height=(0.7, 1.3),
    field_of_view=(45.0, 60.0), road=(2.2, 3.4), glass=0.0, parked=0.8, paints=VIVID,
)  # fmt: skip
ELSEWHERE = (RURAL, PLAZA, HIGHRISE, NIGHT, SNOW, TERRACE)
