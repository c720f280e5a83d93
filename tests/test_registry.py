"""Parts that a config chooses by name (`steering.registry`), and what identity makes of them."""

from dataclasses import dataclass, field

import pytest

from steering.errors import SteeringError
from steering.registry import Registry, chosen
from steering.schedules import SCHEDULES, Constant, Linear, Schedule
from steering.typed import differences, plain, typed

SHAPES: Registry = Registry("shape", "steering.test_shapes")


@SHAPES.register("ball")
@dataclass(frozen=True)
class Ball:
    radius: float = 1.0


@SHAPES.register("box")
@dataclass(frozen=True)
class Box:
    width: float
    depth: float = 2.0


@dataclass
class Inner:
    shape: Ball | Box = chosen(SHAPES, Ball())
    size: int = 1


@dataclass
class Options:
    shape: Ball | Box = chosen(SHAPES, Ball())
    other: Ball | Box | None = chosen(SHAPES, None)
    inner: Inner = field(default_factory=lambda: Inner(Ball(3.0), 2))


class RefusedError(Exception):
    pass


def read(raw, cls=Options):
    def fail(path, message):  # noqa: ARG001
        raise RefusedError(message)

    return typed(cls, raw, "", fail)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, Options()),
        ({"shape": "ball"}, Options()),
        ({"shape": {"radius": 2}}, Options(Ball(2.0))),
        ({"shape": {"name": "box", "width": "3"}}, Options(Box(3.0))),
        ({"shape": Box(4.0)}, Options(Box(4.0))),
        ({"other": "ball"}, Options(other=Ball())),
        ({"other": None}, Options()),
        ({"inner": {"size": 5}}, Options(inner=Inner(Ball(3.0), 5))),
        ({"inner": {"shape": {"name": "ball"}}}, Options(inner=Inner(Ball(3.0), 2))),
        ({"inner": {"shape": {"name": "box", "width": 1}}}, Options(inner=Inner(Box(1.0), 2))),
    ],
)
def test_a_part_by_name_by_section_or_itself(raw, expected):
    found = read(raw)
    assert found == expected
    assert read(plain(found)) == found


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"shape": "bal"}, "no shape 'bal'; known: ball, box"),
        ({"shape": "box"}, "shape.width is missing; expected float"),
        ({"shape": None}, "shape: expected the name of a shape or a section, got null"),
        ({"shape": 3}, "shape: expected the name of a shape or a section, got 3"),
        ({"shape": {"name": "box", "width": 1, "widht": 2}}, "did you mean 'shape.width'?"),
        ({"shape": {"name": "box", "width": "wide"}}, "shape.width: expected float, got 'wide'"),
        ({"other": {"width": 3}}, "other.name is missing; expected one of ball, box"),
        ({"shape": "nowhere.py:mine"}, "no such file"),
    ],
)
def test_what_does_not_fit_is_named(raw, message):
    with pytest.raises(RefusedError) as refused:
        read(raw)
    assert message in str(refused.value)


def test_a_part_from_a_file(tmp_path):
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\nfrom test_registry import SHAPES\n"
        "@SHAPES.register('star')\n@dataclass(frozen=True)\nclass Star:\n    points: int = 5\n"
    )
    found = read({"shape": {"name": f"{tmp_path}/own.py:star", "points": 7}})
    assert found.shape.points == 7
    assert plain(found)["shape"] == {"name": f"{tmp_path}/own.py:star", "points": 7}
    with pytest.raises(SteeringError, match="registers no shape 'moon'"):
        SHAPES.find(f"{tmp_path}/own.py:moon")


def test_identity_counts_what_differs_from_the_defaults_that_stand_there():
    assert differences(Options()) == {}
    assert differences(Options(Ball(2.0))) == {"shape": {"name": "ball", "radius": 2.0}}
    assert differences(Options(Box(1.0))) == {"shape": {"name": "box", "width": 1.0}}
    assert differences(Options(other=Ball())) == {"other": {"name": "ball"}}
    # The class's own default is not the default here, and so it counts.
    own = Options(inner=Inner(Ball(), 2))
    assert differences(own) == {"inner": {"shape": {"name": "ball", "radius": 1.0}}}


@dataclass
class Moving:
    rate: Schedule = chosen(SCHEDULES, Constant(1.0))


@pytest.mark.parametrize(
    ("raw", "expected", "changed"),
    [
        ({}, Constant(1.0), {}),
        ({"rate": 1}, Constant(1.0), {}),
        ({"rate": 0.5}, Constant(0.5), {"rate": 0.5}),
        ({"rate": {"name": "constant", "value": 0.5}}, Constant(0.5), {"rate": 0.5}),
        (
            {"rate": {"name": "linear", "start": 0, "end": 1}},
            Linear(0.0, 1.0),
            {"rate": {"name": "linear", "start": 0.0, "end": 1.0}},
        ),
    ],
)
def test_a_number_is_a_schedule_that_stays(raw, expected, changed):
    found = read(raw, Moving)
    assert found.rate == expected
    assert differences(found) == changed
    assert read(plain(found), Moving) == found


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="must be a frozen dataclass"):
        SHAPES.register("none")(int)
    with pytest.raises(ValueError, match="registered already"):
        SHAPES.register("ball")(Ball)
