"""One thread per database: request -> queue -> plan -> call -> delivery.

``_request`` is what travels, ``_queue`` where it waits, ``_plan`` decides what runs next and together (pure functions),
``_pacing`` how large a piece of writing may be, ``_thread`` serves, ``_delivery`` hands back, ``_calling`` is the caller's
side, ``_registry`` keeps one engine per database, and ``_chroma`` alone opens Chroma.
"""
