"""What runs on the ranks: the actor, the reference, the critic, the rollout engine, and the reward worker."""
