"""The course's pictures: pure functions from records to a `Picture` (a drawing and its text twin)."""

from helpers.pictures.bars import bars
from helpers.pictures.film import film
from helpers.pictures.namespaces import namespace_map
from helpers.pictures.tree import before_after, tree
from helpers.pictures.wiring import wiring

__all__ = ["bars", "before_after", "film", "namespace_map", "tree", "wiring"]
