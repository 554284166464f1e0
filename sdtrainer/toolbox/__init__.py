"""What is done with models and adapter files after training; each verb is a chore."""
