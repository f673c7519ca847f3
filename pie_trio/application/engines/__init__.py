"""Engines in processes of their own: started, spoken to, watched, and started again."""
