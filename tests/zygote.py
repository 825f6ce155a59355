"""A process that has imported everything, and forks one for each training it is told of: the start costs nothing.

Reads a JSON object a line: out, scan, stage, changes, log, delay and dies; writes exit status and seconds of each. The
child is killed after `delay` seconds, and kills itself by `dies`, (where, n): in writing its n-th checkpoint.
"""

import json
import math
import os
import signal
import sys
import time

import torch
from trainings import FITS, configured

from dfd.data import manifest
from dfd.inference import stage


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_writing(where, count):
    """Die at the n-th checkpoint: with half of it written, with all of it, or with the new name just given."""
    save, replace, left = torch.save, os.replace, [count]

    def counted_save(content, file):
        save(content, file)
        left[0] -= 1
        if left[0] == 0 and where == "half written":
            file.flush()
            os.ftruncate(file.fileno(), file.tell() // 2)
            die()

    def counted_replace(draft, path):
        if left[0] == 0 and where == "not renamed":
            die()
        replace(draft, path)
        if left[0] == 0 and where == "renamed":
            die()

    stage.torch.save, os.replace = counted_save, counted_replace


def train(order):
    descriptor = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    table = manifest.load(order["scan"])
    if order["dies"]:
        kill_in_writing(*order["dies"])
    FITS[order["stage"]][0](table, configured(order["stage"], order["out"], table.attrs["root"], **order["changes"]))


def end(child, delay):
    """The child's exit status; it is killed after some seconds where they are given."""
    deadline = time.monotonic() + (math.inf if delay is None else delay)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.003)


if __name__ == "__main__":
    for line in sys.stdin:
        order, began = json.loads(line), time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                train(order)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        print(end(child, order["delay"]), time.monotonic() - began, flush=True)
