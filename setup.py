# SPDX-License-Identifier: Apache-2.0
"""For `pip install`: packages for machines without ROS (cloud, workers, unit tests). colcon uses CMakeLists.txt."""

from setuptools import find_packages, setup

setup(
    name="vla-ota",
    version="0.1.0",  # held equal to package.xml by a test
    description="Change the policy a robot runs while it runs it, and undo a bad one by itself",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["vla_*"]),
    package_data={"vla_fleet": ["page/static/*", "page/templates/*"], "vla_sim": ["bundles/**/*"]},
    install_requires=[
        "mcap",
        "numpy>=1.26",
        "pillow",
        "pyyaml",
        "requests",
        "rfc8785",
        "safetensors",
        "scipy",
        "semver>=3",
    ],
    extras_require={
        "torch": ["torch>=2.4"],
        "sim": ["mujoco>=3", "torch>=2.4"],
        "analysis": ["matplotlib>=3.8", "tqdm"],
        "learning": ["pyarrow", "ray[data]"],
    },
)
