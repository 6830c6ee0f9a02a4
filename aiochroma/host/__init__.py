"""The owner process: one process has a directory open, and every process of the same user on the machine shares it.

``wire``        values as MessagePack, messages as frames of bytes
``messages``    what the messages hold, and which types of Chroma, of records and of reports may travel
``sockets``     where the socket of a directory is, who may connect, and waking a thread that waits for sockets
``reaching``    reaching the host of a directory, or starting one, and the first words with it
``opening``     how a directory is opened: in this process, or through its host
``link``        the client's thread, with ``link_queue``: what waits, and what has been sent
``server``      the host's life: listening, greeting, ending
``peer``        the connected clients, as the host sees them
``scheduling``  slices of writing, and fairness between clients
"""
