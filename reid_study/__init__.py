__version__ = "0.1.0"
from .core import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__, modules_only=True)
