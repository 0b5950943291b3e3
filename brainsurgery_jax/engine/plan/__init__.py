"""The plan of a run: a list of work items, each with the bytes that it reads, writes and holds.

This package uses no arrays, threads or open files: the same program on the same machine always yields the same list.
"""
