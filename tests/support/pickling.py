"""Every request, result and error goes through pickle on its way, as if it came from another process."""

from __future__ import annotations

import pickle

from aiochroma.backend.embedded import EmbeddedBackend
from aiochroma.core.connection import Aside
from aiochroma.core.registry import Lease

__all__ = ["carry_by_pickle"]


def through_pickle(value):
    return pickle.loads(pickle.dumps(value))


def carry_by_pickle():
    """Have every connection of this process carry pickled values from now on; return what ends that."""
    submit, submit_many, execute = Lease.submit, Lease.submit_many, EmbeddedBackend.execute

    def submit_pickled(self, request, deadline=None, **options):
        return submit(self, through_pickle(request), deadline, **options)

    def submit_many_pickled(self, requests, deadline=None, **options):
        return submit_many(self, [through_pickle(each) for each in requests], deadline, **options)

    def execute_pickled(self, request, deadline=None):
        try:
            result = execute(self, request, deadline)
        except Exception as error:
            cause = error.__cause__
            copied = through_pickle(error)
            # Python leaves the cause out.
            raise copied from cause
        # Work that goes on beside the thread stays where it is; its own result is plain.
        return result if isinstance(result, Aside) else through_pickle(result)

    Lease.submit, Lease.submit_many = submit_pickled, submit_many_pickled
    EmbeddedBackend.execute = execute_pickled

    def end():
        Lease.submit, Lease.submit_many, EmbeddedBackend.execute = submit, submit_many, execute

    return end
