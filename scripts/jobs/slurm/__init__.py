"""Jobs on a SLURM cluster, by submitit."""
