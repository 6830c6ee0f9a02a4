"""The owner process: one process has a directory open, and every process of the same user on the machine shares it.

``frames``      how messages are cut into frames of bytes, and put together again
``codec``       plain data and registered types as MessagePack
``types``       what may travel: the registered types of Chroma, of records and of reports
``errors``      errors as plain data
``rendezvous``  where the socket of a directory is, and who may connect
``starting``    starting a host on demand, exactly one for each directory
``link``        the client's end: a worker whose database is in another process
``server``      the host's end: accepting, reading, cancelling, ending
``peer``        one connected client, as the host sees it
``scheduling``  slices, windows and fairness between clients
"""
