"""What a run does, decided before it begins: the work as values, with what each piece of it reads, writes and holds.

There are no arrays here, no threads and no open files: the same program and the same machine always give the same list.
"""
