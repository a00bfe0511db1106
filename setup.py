"""Packaging of torchadx. Reads files only: installing never imports torch nor touches a device."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "torchadx" / "_version.py").read_text())[1]

BENCH = ["rich>=13"]
LOSSLESS = ["blosc2>=2.7"]
DATAFRAME = ["pandas>=2"]
PROGRESS = ["tqdm>=4.65"]
SCIPY = ["scipy>=1.11"]
INSPECT = ["graphviz>=0.20", "matplotlib>=3.8", "plotly>=6"]
EXAMPLES = [*BENCH, *PROGRESS, *INSPECT, "scikit-learn>=1.3"]
TEST = [
    *(*EXAMPLES, *LOSSLESS, *DATAFRAME, *SCIPY, "hypothesis>=6.100", "pytest>=8"),
    # drives a Chromium that is installed: pages are looked at as people see them
    "playwright>=1.45",
    # torch.testing._internal needs these, whose operator samples the tests compare with
    *("expecttest>=0.2", "numpy>=1.26"),
]
DEV = [*TEST, "import-linter>=2.1", "mypy>=1.15", "pre-commit>=3.7", "ruff>=0.12"]

setup(
    name="torchadx",
    version=VERSION,
    description="Fused linear layers, planned Jacobians and activation memory, for every differentiation mode.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    author="the torchadx authors",
    packages=find_packages(include=["torchadx", "torchadx.*"]),
    package_data={"torchadx": ["py.typed"], "torchadx.inspect._page": ["*.html", "*.css", "*.js", "vendor/*"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        'triton>=3.6; platform_system == "Linux" and platform_machine == "x86_64"',
    ],
    extras_require={
        "bench": BENCH,
        "dataframe": DATAFRAME,
        "dev": DEV,
        "examples": EXAMPLES,
        "inspect": INSPECT,
        "lossless": LOSSLESS,
        "progress": PROGRESS,
        "scipy": SCIPY,
        "test": TEST,
    },
    keywords=[
        *("pytorch", "autograd", "forward-mode", "jvp", "jacobian", "hessian", "triton", "fused", "activation"),
        *("offload", "compression"),
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
