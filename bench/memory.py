"""The pages of freed memory, kept for the next program."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8

kept = False


def keep_pages() -> None:
    """Has glibc keep the memory that it was given, and sets `kept`. Call it before JAX starts its threads.

    On CPU every call of a program of XLA allocates its temporary buffers anew, and large ones come from the system,
    page by page: at [1024, 32768] that takes three times as long as exp and both products. Accelerators have allocators
    that keep their memory.
    """
    global kept
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        print("no glibc: page faults of temporary buffers are timed")
        return
    # All from one heap that never shrinks: no mapping of its own for a large buffer, no arena for each thread.
    kept = all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_ARENA_MAX, 1)])
