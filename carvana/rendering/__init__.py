"""Studio photographs of cars with exact masks, rendered, then named and stored as Carvana's.

A car is a few lofted surfaces (body, cabin) and round parts (wheels). It is turned through 16
angles, projected, and painted back to front; its mask is the same faces in one color.

Everywhere in here lengths are in meters; x points forward, y to the car's left, z up, and the car
stands on z = 0 around the origin. Colors are RGB in 0 to 255. Picture sizes are (height, width).
"""

from carvana.rendering.camera import ANGLES
from carvana.rendering.cars import PARTS, new_car
from carvana.rendering.photograph import render
from carvana.rendering.sets import SetOptions, remove_leftovers, render_set
from carvana.rendering.studio import new_studio

__all__ = [
    "ANGLES",
    "PARTS",
    "SetOptions",
    "new_car",
    "new_studio",
    "remove_leftovers",
    "render",
    "render_set",
]
