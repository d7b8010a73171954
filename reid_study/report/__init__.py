from ..core import extra, lazy_names

with extra("study"): import execnb as _
__getattr__, __dir__ = lazy_names(__name__, __path__)
