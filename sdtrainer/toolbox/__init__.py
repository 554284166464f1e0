"""What is done with models and adapter files after training; each file is a chore."""
