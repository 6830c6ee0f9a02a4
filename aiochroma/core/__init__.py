"""One worker thread per database: request, queue, plan, call, delivery. Knows neither Chroma nor numpy.

Read ``request`` and ``operations`` (what travels), ``queue`` (where it waits), ``plan`` (pure: what runs next and together),
``worker`` (the thread that serves), ``delivery`` (how outcomes come back), ``calls`` (the caller's side) and ``registry`` (one
engine per database) in this order.
"""
