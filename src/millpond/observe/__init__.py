"""What people and programs see of a store: tables for a terminal, JSON for the rest."""
