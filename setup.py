"""Packaging of Shortlist. Beam's `--setup_file` installs workers from this file, so it is the real one."""

from pathlib import Path

from setuptools import setup

PACKAGES = ["components", "pipeline", "serving", "trainer", "transform"]

# The direct dependencies; `requirements.lock` pins these and everything below them.
INSTALL_REQUIRES = [
    "absl-py",
    "apache-beam[aws,gcp]==2.65.0",
    "av>=17",
    "gensim>=4.4",
    "grpcio",
    "grpcio-health-checking",
    "grpcio-reflection",
    "jinja2",
    "kubernetes",
    "markupsafe",
    "kfp==2.5.0",
    "kfp-server-api",
    "ml-metadata==1.16.0",
    "ml-dtypes",
    "numpy==1.26.4",
    "opencv-python-headless",
    "pandas",
    "prometheus-client",
    "protobuf==3.20.3",
    "psutil",
    "pyarrow==10.0.1",
    "pydantic>=2.7",
    "pyyaml",
    "redis>=5",
    "rich",
    "scikit-learn",
    "scipy",
    "starlette",
    "tensorflow==2.16.2",
    "tensorflow-data-validation==1.16.1",
    "tensorflow-io==0.37.1",
    "tensorflow-metadata",
    "tensorflow-model-analysis==0.47.1",
    "tensorflow-recommenders==0.7.7",
    "tensorflow-serving-api==2.16.1",
    "tensorflow-text==2.16.1",
    "tensorflow-transform==1.16.0",
    "tf-keras==2.16.0",
    "tfx-bsl==1.16.1",
    "tfx[kfp]==1.16.0",
    "typer",
    "typing-extensions",
    "urllib3",
    "uvicorn",
]

ROOT = Path(__file__).parent


def packages() -> list[str]:
    """Every folder below the top-level packages that holds an `__init__.py`."""
    found = [init.parent for top in PACKAGES for init in sorted((ROOT / top).rglob("__init__.py"))]
    return [folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in found]


setup(
    name="shortlist",
    version="0.1.0",
    description="From raw clips and interaction logs to a served, personalised micro-video feed",
    license="Apache-2.0",
    python_requires="==3.10.*",
    packages=packages(),
    package_data={
        "transform": ["contracts/*.yaml"],
        "pipeline": ["configs/*.yaml", "templates/*"],
        "serving": ["configs/*"],
    },
    install_requires=INSTALL_REQUIRES,
    entry_points={"console_scripts": ["shortlist = pipeline.cli:main"]},
)
