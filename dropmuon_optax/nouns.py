"""The form of the package's nouns: frozen dataclasses with a short repr."""

import dataclasses


class Noun:
    """Base of frozen dataclasses that print only what differs from the defaults.

    Functions print by their names, without the address that they have in one run.

    Subclasses are decorated `@dataclasses.dataclass(frozen=True, repr=False)`, which
    makes them hashable and comparable; fields marked `repr=False` are never printed.

    Examples:
      >>> @dataclasses.dataclass(frozen=True, repr=False)
      ... class Ball(Noun):
      ...     center: float
      ...     radius: float = 1.0
      >>> Ball(0.5), Ball(0.5, radius=2.0)
      (Ball(0.5), Ball(0.5, radius=2.0))
    """

    def __repr__(self) -> str:
        shown = []
        assert dataclasses.is_dataclass(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not field.repr:
                continue
            if field.default is dataclasses.MISSING:
                shown.append(_printed(value))
            elif value != field.default:
                shown.append(f"{field.name}={_printed(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _printed(value: object) -> str:
    name = getattr(value, "__qualname__", None)
    return name if callable(value) and isinstance(name, str) else repr(value)
