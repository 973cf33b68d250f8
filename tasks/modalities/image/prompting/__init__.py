"""Images for files of prompts, in the folder layouts that benchmarks of text to image read."""
