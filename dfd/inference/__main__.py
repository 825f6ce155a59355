"""The seed's spelling of `python -m dfd predict X`: python -m dfd.inference --image X."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:] = ["predict", *(word.removeprefix("--image=") for word in sys.argv[1:] if word != "--image")]
    runpy.run_module("dfd", run_name="__main__", alter_sys=True)
