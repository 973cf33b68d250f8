"""A config builds the class that it is nested in; an axis says what is given."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tokenloom.models.core import config


class Part:
    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        size: int = 1

    def __init__(self, given: config.Config, width: int) -> None:
        self.config, self.width = given, width


class Wider(Part):
    class Config(Part.Config):
        def build(self, width: int) -> Wider:
            return self.construct(2 * width)


class Plain(Part):
    class Config(Part.Config):
        pass


class Special(Part.Config):
    """Nested nowhere, as a config that only changes defaults."""


@dataclass(frozen=True, kw_only=True)
class Lonely(config.Config):
    pass


CASES = [(Part.Config(size=3), Part, 8), (Wider.Config(), Wider, 16), (Plain.Config(), Plain, 8), (Special(), Part, 8)]


@pytest.mark.parametrize(("given", "built", "width"), CASES)
def test_a_config_builds_the_class_that_it_is_nested_in(given: Part.Config, built: type, width: int) -> None:
    made = given.build(8)
    assert type(made) is built
    assert made.config is given
    assert made.width == width


def test_a_config_that_is_nested_nowhere_says_so() -> None:
    with pytest.raises(TypeError, match=r"Lonely is nested in no class: it needs a build of its own"):
        Lonely().build()
