"""Faults on purpose: processes killed, connections cut, disks filled, bytes flipped, while a pipeline runs; nothing may be lost."""
