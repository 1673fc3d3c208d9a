"""The daemon over tables of jobs: what it is to do, the daemon itself, how it is seen, and its process."""

from cdc.daemon.daemon import Daemon
from cdc.daemon.plan import Plan

__all__ = ["Daemon", "Plan"]
