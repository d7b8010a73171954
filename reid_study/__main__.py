"`python -m reid_study` is the command `reid-study`."
import sys

from .cli import main

if __name__ == "__main__": sys.exit(main())
