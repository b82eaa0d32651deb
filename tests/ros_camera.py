"""A camera in a process of its own: ``python ros_camera.py COUNT`` publishes pictures of 1280x720 on ``image_raw`` at 30 Hz.

It waits for a subscriber, stamps by the system's clock, and says each stamp on stdout.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import rclpy
from conftest import road_image
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from perception.messages import Messages
from perception.ros.node import message_class

RATE_HZ = 30
WIDTH, HEIGHT = 1280, 720


def main(count: int) -> None:
    rclpy.init()
    node = rclpy.create_node("camera")
    images = node.create_publisher(Image, "image_raw", QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE))
    make = Messages(message_class)
    noise = np.random.default_rng(0)
    pictures = [road_image(WIDTH, HEIGHT) + noise.integers(0, 3, (HEIGHT, WIDTH, 1), np.uint8) for _ in range(10)]
    data = [make.numbers(picture) for picture in pictures]
    while not images.get_subscription_count():
        time.sleep(0.05)
    time.sleep(0.5)  # the subscriber has to find this publisher, too
    due = time.monotonic()
    for number in range(count):
        stamp_ns = time.time_ns()
        header = make.header("camera", stamp_ns)
        images.publish(
            Image(header=header, height=HEIGHT, width=WIDTH, encoding="bgr8", step=WIDTH * 3, data=data[number % len(data)])
        )
        print(stamp_ns, flush=True)
        due = max(due + 1 / RATE_HZ, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
    time.sleep(1.0)  # what is on its way arrives
    node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
