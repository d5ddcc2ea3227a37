"""A disk that is full, said in one message."""

import errno


def fault(error: OSError) -> str | None:
    """What is wrong and what helps, where the disk is full or a quota is used up; None for any other error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return f"{error.filename or 'the disk'}: {error.strerror}; free space and start the same command again"
