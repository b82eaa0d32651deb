"""The Freespace perception node: frames in, drivable-area polygons out."""

__version__ = "0.1.0"
