"""What each contender runs in a process of its own, and what they share: the job, the clock, the line of results."""
