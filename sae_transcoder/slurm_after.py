"""The old name of launch/slurm/job_end.py, for scripts of jobs that were queued before it moved. Delete after release 0.1."""

from sae_transcoder.launch.slurm.job_end import main

if __name__ == "__main__":
    main()
