from ..core import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__)
