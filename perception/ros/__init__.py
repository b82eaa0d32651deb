"""The ROS 2 node: the loop of the command line, with a topic for its source and topics for its outputs.

Nothing outside this package knows ROS, and nothing in it is imported before the node is started.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Sequence

from perception.errors import BadInput

MISSING = (
    "the node needs rclpy, which this Python does not have: source ROS 2's setup file first "
    "(source /opt/ros/DISTRO/setup.bash), with a Python of the version that ROS 2 was built for"
)


def start(arguments: Sequence[str], stop: threading.Event) -> None:
    """Run the node until ``stop`` is set.

    Args:
        arguments: those of ROS, ``--ros-args ...``.

    Raises:
        BadInput: there is no rclpy, ``arguments`` or parameters cannot be; with ``autostart`` also: it cannot be configured.
        FreespaceError, ModelError, EngineError: with ``autostart``: it failed; nobody else would hear of it.
    """
    if importlib.util.find_spec("rclpy") is None:
        raise BadInput(MISSING)
    from perception.ros.node import spin

    spin(arguments, stop)


def main() -> None:
    """The executable ``freespace_node``: ``freespace node`` under the name that ``ros2 run freespace`` looks for."""
    from perception.cli import main as command_line

    sys.argv.insert(1, "node")
    command_line()
