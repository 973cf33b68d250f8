"""How a trained generator is sampled: decoding sessions, schedules, filters."""
