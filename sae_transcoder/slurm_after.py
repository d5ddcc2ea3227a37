"""The old name of launch/slurm/after.py, for scripts of jobs that were queued before it moved. Delete after release 0.1."""

from sae_transcoder.launch.slurm.after import main

if __name__ == "__main__":
    main()
