"""Running a program: schedule, evaluation by blocks, compiled kernels, staging and publication."""
