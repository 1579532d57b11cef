"""Name-to-class registries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dassl.names import check_availability

__all__ = ["Registry"]


class Registry:
    """Maps names to classes or functions and refuses duplicates.

    Example::

        TRAINER_REGISTRY = Registry("TRAINER")

        @TRAINER_REGISTRY.register()
        class MyTrainer(TrainerX): ...
    """

    def __init__(self, name: str) -> None:
        """Create an empty registry; ``name`` says in error messages what is registered here."""
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(
        self, *either: Any, name: str | None = None, obj: Any = None, force: bool = False
    ) -> Callable[[Any], Any] | Any:
        """Register an object, as a decorator or by a direct call.

        Args:
            *either: Name or object or both, in this order, as in Dassl.
            name: Name to register under, by default the object's ``__name__``.
            obj: Class or function; omitted in ``@REGISTRY.register()``.
            force: Replace an existing entry instead of refusing.

        Returns:
            The object itself, or a decorator if ``obj`` was omitted.

        Raises:
            ValueError: The name is taken.
        """
        # Told apart by their types: Dassl's users pass an object, a name, or both.
        for given in either:
            if isinstance(given, str):
                name = given
            elif given is not None:
                obj = given

        def add(item: Any) -> Any:
            key = name or item.__name__
            if key in self._objects and not force:
                raise ValueError(
                    f"{key!r} is already registered in {self._name} (by "
                    f"{getattr(self._objects[key], '__module__', '?')}); choose another name"
                )
            self._objects[key] = item
            return item

        return add if obj is None else add(obj)

    def get(self, name: str) -> Any:
        """Return what is registered under a name.

        Raises:
            ValueError: Nothing has this name; the message gives the nearest one.
        """
        return self._objects[check_availability(name, self._objects, self._name)]

    def registered_names(self) -> list[str]:
        """Return all names in the order of registration."""
        return list(self._objects)

    def __contains__(self, name: object) -> bool:
        """Tell whether a name is registered."""
        return name in self._objects

    def __iter__(self) -> Iterator[str]:
        """Iterate over the registered names."""
        return iter(self._objects)

    def __len__(self) -> int:
        """Return how many names are registered."""
        return len(self._objects)
