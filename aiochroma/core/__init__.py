"""One worker thread per database: request, queue, plan, call, delivery. Knows neither Chroma nor numpy.

Read ``request`` and ``operations`` (what travels), ``calls`` (making a call, and handing its outcome back), ``queue`` (where it
waits), ``plan`` (pure: what runs next and together), ``worker`` (the thread that serves) and ``registry`` (one engine per
database) in this order.
"""
