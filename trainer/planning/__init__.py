"""What a job would take, and whether it should be done so: parameters, memory, time, advice; nothing is loaded."""
