"""The published results as one HTML file that needs no network: tables, galleries, credit curves (`reproduce.page` writes it)."""
