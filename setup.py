"""Everything that setuptools needs is read from settings.ini, so that it is said once."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    keywords=settings["keywords"],
    url=settings["git_url"],
    packages=find_packages(include=["reid_study", "reid_study.*"]),
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={extra: settings[f"{extra}_requirements"].split()
                    for extra in ("dev", "site", "cluster", "scale", "serve", "export", "timm", "distributed")},
    entry_points={"console_scripts": settings["console_scripts"].split(), "nbdev": ["reid_study=reid_study._modidx:d"]},
)
