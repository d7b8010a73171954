"""Execute the notebooks as `nbdev_test` does, the longest first, so that all processes end together; nbdev takes them by name."""
import sys
from contextlib import chdir
from pathlib import Path

from fastcore.parallel import parallel
from fastcore.script import Param, call_parse
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb

# at least 10 seconds each; the others are short enough to come by name
LONGEST = ("76_study.workflow", "54_training.distributed", "35_losses.many_identities", "75_study.worker", "63c_evaluation.coverage",
           "75a_study.distributed", "10a_data.people", "81b_report.textbook", "64_evaluation.index", "81a_report.study_figures",
           "91_inference.search", "51_training.learner", "78_study.analysis", "41_losses.triplet", "80a_report.study_tables",
           "79a_study.replication")
PLACE = {name: place for place, name in enumerate(LONGEST)}


@call_parse
def main(
    notebooks: Param("these alone; default: every notebook", Path, nargs="*"),
    n_workers: int = 2,     # processes
):
    "Print each notebook's seconds, the slowest first; exit with 1 where one has failed."
    config = get_config()
    files = sorted(file.absolute() for file in notebooks or nbglob(as_path=True))
    files.sort(key=lambda file: PLACE.get(file.stem, len(PLACE)))
    with chdir(config.nbs_path):
        results = parallel(test_nb, files, skip_flags=config.tst_flags.split(), basepath=config.config_path, n_workers=n_workers,
                           pause=0.01)
    for file, (_, seconds) in sorted(zip(files, results), key=lambda done: -done[1][1]): print(f"{seconds:5.1f} s  {file.name}")
    failed = [file.name for file, (passed, _) in zip(files, results) if not passed]
    if failed: sys.exit(f"failed: {', '.join(failed)}")
    print(f"{len(files)} notebooks passed")
