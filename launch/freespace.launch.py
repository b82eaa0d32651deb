"""Freespace behind a camera, a bag, or whatever publishes images already.

    ros2 launch freespace freespace.launch.py                                   # images of /camera/image_raw
    ros2 launch freespace freespace.launch.py source:=camera camera:=v4l2_camera rviz:=true
    ros2 launch freespace freespace.launch.py source:=bag bag:=drive/ image:=/front/image_raw

A camera driver and image_proc share a container, so that images between them are not copied; the node itself is a process of
its own. Its lifecycle is its own, too, unless ``autostart:=false``, or the parameter file, leaves it to a manager.
"""

import re
from pathlib import Path

from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, RegisterEventHandler, Shutdown, TimerAction
from launch.event_handlers import OnProcessIO
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import ComposableNodeContainer, Node
from launch_ros.descriptions import ComposableNode

from launch import LaunchDescription

HERE = Path(__file__).resolve().parent
ACTIVE = b"active: takes images of"  # what the node says then
DISCOVERY_S = 1.0  # until the player and the node know each other
LAST_S = 2.0  # until the last images' results are out

ARGUMENTS = {  # name: (default, description, choices)
    "source": ("topic", "what publishes the images: something else already, a camera, or a bag", ["topic", "camera", "bag"]),
    "camera": ("camera_ros", "the camera's driver, for source:=camera", ["camera_ros", "v4l2_camera"]),
    "camera_params": ("", "parameters of the driver, a YAML file: device, size, format, camera_info_url", None),
    "bag": ("", "the bag to play, for source:=bag", None),
    "loop": ("false", "play the bag for ever", ["true", "false"]),
    "rectify": ("false", "let image_proc take the lens's distortion out, for source:=camera", ["true", "false"]),
    "namespace": ("", "of the node, and of the camera", None),
    "name": ("freespace", "of the node; ~ in the names of its topics", None),
    "image": ("camera/image_raw", "topic of the images; with rectify:=true, of those of image_proc: camera/image_rect", None),
    "camera_info": ("camera/camera_info", "topic of the camera's calibration", None),
    "model": ("", "model file; empty for the one that ships with the package, or that of the parameter file", None),
    "params_file": (str(HERE / "params.yaml"), "parameters of the node", None),
    "autostart": ("", "false: a lifecycle manager starts the node; empty: what the file says", ["", "true", "false"]),
    "rviz": ("false", "show everything in RViz", ["true", "false"]),
}


def generate_launch_description():
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description, **({"choices": choices} if choices else {}))
        for name, (default, description, choices) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=build)])


def build(context):
    """The actions, from the arguments as they were given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    node = freespace(given)
    actions = [node]
    if given["source"] == "camera":
        actions.append(camera(given))
    if given["source"] == "bag":
        actions.insert(0, once_active(node, bag(given)))
    if given["rviz"] == "true":
        actions.append(rviz(given))
    return actions


def freespace(given):
    overrides = {}
    if given["autostart"]:
        overrides["autostart"] = given["autostart"] == "true"
    if given["source"] == "bag":  # else the parameter file says it: a simulation has a clock, too
        overrides["use_sim_time"] = True
    if given["model"]:
        overrides["engine.model"] = given["model"]
    rectified = given["source"] == "camera" and given["rectify"] == "true"
    image = "camera/image_rect" if rectified and given["image"] == ARGUMENTS["image"][0] else given["image"]
    return Node(
        package="freespace",
        executable="freespace_node",
        name=given["name"],
        namespace=given["namespace"],
        parameters=[given["params_file"], *([overrides] if overrides else [])],
        # image_raw/compressed is asked for by that name: it is derived from image_raw when that has been remapped.
        remappings=[("image_raw", image), ("camera_info", given["camera_info"])],
        output="screen",
    )


def rviz(given):
    """RViz with the layout, whose topics are those of a node called /freespace, by the clock that the node goes by."""
    layout = HERE / "freespace.rviz"
    topics = re.findall(r"Value: /freespace/(\S+)", layout.read_text(encoding="utf-8"))
    node = re.sub("/+", "/", f"/{given['namespace']}/{given['name']}")
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(layout)],
        remappings=[(f"/freespace/{topic}", f"{node}/{topic}") for topic in topics],
        parameters=[{"use_sim_time": given["source"] == "bag"}],
        output="screen",
    )


def camera(given):
    """The driver, and image_proc where it is wanted, in one container."""
    # Only with somebody to share with: a driver that shares publishes no compressed images (v4l2_camera).
    shared = [{"use_intra_process_comms": True}] if given["rectify"] == "true" else []
    parameters = [given["camera_params"]] if given["camera_params"] else []
    if given["camera"] == "camera_ros":  # its topics are below its own name
        driver = ComposableNode(
            package="camera_ros",
            plugin="camera::CameraNode",
            name="camera",
            namespace=given["namespace"],
            parameters=parameters,
            extra_arguments=shared,
        )
    else:
        driver = ComposableNode(
            package="v4l2_camera",
            plugin="v4l2_camera::V4L2Camera",
            name="camera",
            namespace=given["namespace"],
            parameters=parameters,
            remappings=[  # that of a topic is not that of its compressed form
                ("image_raw", "camera/image_raw"),
                ("image_raw/compressed", "camera/image_raw/compressed"),
                ("camera_info", "camera/camera_info"),
            ],
            extra_arguments=shared,
        )
    nodes = [driver]
    if given["rectify"] == "true":
        nodes.append(
            ComposableNode(
                package="image_proc",
                plugin="image_proc::RectifyNode",
                name="rectify",
                namespace=given["namespace"],
                remappings=[
                    ("image", "camera/image_raw"),
                    ("camera_info", "camera/camera_info"),
                    ("image_rect", "camera/image_rect"),
                    ("image_rect/compressed", "camera/image_rect/compressed"),
                ],
                extra_arguments=shared,
            )
        )
    return ComposableNodeContainer(
        package="rclcpp_components",
        executable="component_container",
        name="camera_container",
        namespace=given["namespace"],
        composable_node_descriptions=nodes,
        output="screen",
    )


def once_active(node, action):
    """Do it when the node has been activated for the first time. By what it says: its transition events come by a topic, and
    that one is active may be over before its subscriber is known."""
    left = [action]

    def hear(event):
        return [left.pop()] if left and ACTIVE in event.text else None

    return RegisterEventHandler(OnProcessIO(target_action=node, on_stdout=hear, on_stderr=hear))


def bag(given):
    """Play it from its beginning; when it ends, everything does."""
    if not given["bag"]:
        raise RuntimeError("source:=bag needs the bag: bag:=FOLDER")
    looped = ["--loop"] if given["loop"] == "true" else []
    return ExecuteProcess(
        cmd=["ros2", "bag", "play", given["bag"], "--clock", "--delay", str(DISCOVERY_S), *looped],
        output="screen",
        on_exit=[TimerAction(period=LAST_S, actions=[Shutdown(reason="the bag is over")])],
    )
