from ..core import extra, lazy_names

with extra("train", "fastai"): __getattr__, __dir__ = lazy_names(__name__, __path__)
