"""The owner process: one process has a directory open, and every process of the same user on the machine shares it.

``frames``      how messages are cut into frames of bytes, and put together again
``codec``       plain data and registered types as MessagePack
``types``       what may travel: the registered types of Chroma, of records and of reports
``messages``    what the messages hold, errors as plain data among it
``handshake``   the first words, and the questions of tools
``rendezvous``  where the socket of a directory is, and who may connect
``starting``    starting a host on demand, exactly one for each directory
``opening``     how a directory is opened: in this process, or through its host
``link``        the client's end, with ``link_state`` (its thread) and ``link_queue`` (what waits, what is sent)
``server``      the host's end: accepting, reading, cancelling, ending
``peer``        one connected client, as the host sees it
``scheduling``  slices, windows and fairness between clients
"""
