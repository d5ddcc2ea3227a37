"""What jobs that were queued before 0.2 run at their end: sae_transcoder/launch/slurm/after.py by its old name. Goes with release 0.3."""

from sae_transcoder.launch.slurm.after import main

if __name__ == "__main__":
    main()
