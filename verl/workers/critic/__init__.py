"""PPO's value model."""
