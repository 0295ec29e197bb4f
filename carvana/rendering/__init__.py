"""Photographs of cars with exact masks, rendered, then named and stored as Carvana's.

A car is a few lofted surfaces (body, cabin) and round parts (wheels). It is turned through 16
angles, projected, and painted back to front; its mask is the same faces in one color. It stands
in a studio (studio.py), or with others on a street (street.py).

Everywhere in here lengths are in meters; x points forward, y to the car's left, z up, and the car
stands on z = 0 around the origin. A street has coordinates of its own. Colors are RGB in 0 to 255.
Picture sizes are (height, width).
"""

from carvana.rendering.camera import ANGLES
from carvana.rendering.cars import PARTS, new_car
from carvana.rendering.photograph import render
from carvana.rendering.scenery import SCENE_CLASSES
from carvana.rendering.scenes import SCENE_SIZE, render_scene
from carvana.rendering.sets import Kind, SetOptions, remove_leftovers, render_set
from carvana.rendering.street import new_street
from carvana.rendering.studio import new_studio

__all__ = [
    "ANGLES",
    "PARTS",
    "SCENE_CLASSES",
    "SCENE_SIZE",
    "Kind",
    "SetOptions",
    "new_car",
    "new_street",
    "new_studio",
    "remove_leftovers",
    "render",
    "render_scene",
    "render_set",
]
