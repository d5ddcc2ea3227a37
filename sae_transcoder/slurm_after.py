"""launch/slurm/after.py by the name that jobs queued before the packages know. Goes after release 0.1."""

from sae_transcoder.launch.slurm.after import main

if __name__ == "__main__":
    main()
