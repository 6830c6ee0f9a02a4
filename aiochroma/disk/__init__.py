"""What lies on disk: the files of a database, read and changed by ourselves. Never imports chromadb.

Most of it runs while Chroma has the files closed (preflight, recovery, restore, trimming the log). What runs while Chroma has
them open says so: the lock probe, the copy of a backup, and a look at the positions of the log.
"""
