"""Everything that setuptools needs is read from settings.ini, so that it is said once."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read(ROOT/"settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
packages = find_packages(include=["reid_study", "reid_study.*"])
extras = [name.removesuffix("_requirements") for name in settings if name.endswith("_requirements")]


class build_with_project(build_py):
    "Adds to a wheel what settings.ini names as `project_files`, and for each package a list of its names that editors and mypy read."
    def run(self):
        super().run()
        if not self.editable_mode:
            for source, target in self.project_files():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))
            for package in packages[1:]: self.write_stub(Path(*package.split(".")))

    def project_files(self):
        found = [file for pattern in settings["project_files"].split() for file in sorted(Path().glob(pattern))]
        return [(file, Path(self.build_lib)/"reid_study"/"project"/file) for file in found]

    def write_stub(self, folder):
        lines = [f"from .{module.stem} import *\n" for module in sorted(folder.glob("[!_]*.py"))]
        (Path(self.build_lib)/folder/"__init__.pyi").write_text("".join(lines), "utf-8")

    def get_source_files(self): return [*super().get_source_files(), "settings.ini", *(str(source) for source, _ in self.project_files())]


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(ROOT/"README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    keywords=settings["keywords"],
    url=settings["git_url"],
    packages=packages,
    package_data={"reid_study": ["py.typed"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={extra: settings[f"{extra}_requirements"].split() for extra in extras},
    entry_points={"console_scripts": settings["console_scripts"].split(), "nbdev": ["reid_study=reid_study._modidx:d"]},
    cmdclass={"build_py": build_with_project},
)
