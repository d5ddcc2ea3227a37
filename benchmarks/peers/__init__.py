"""This project beside other programs: the same work, in turns."""
