"""Chroma's asynchronous API over the engine: opening, clients, collections, and looking after an open database."""
