"""Where a run works: Ray, batch jobs, checks before work, errors, stopping."""
