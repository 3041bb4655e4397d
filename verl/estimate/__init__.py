"""What a run costs: memory, operations and time, predicted from a configuration and measured on a rank."""
